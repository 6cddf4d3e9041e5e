"""The commands of docs/ltx.md, run on tiny models under the published names, and what they cost at full size."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.ltx.published_names import lay_out
from tests.trace.test_published_flops import forward, ltx_call

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "ltx.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| (\d+) \+ (\d+)[^|]* \| (\d+) \| `(flowblend run [^`]+)` \|$", PAGE, re.M)
PUBLISHED = {"LLL, DPM++": 1748, "LSL, DPM++": 928, "SSS, DPM++": 257, "LDL": 1774, "DDD": 51, "LLL, Euler": 3496}
SMALL_SIZE = ("--height", "32", "--width", "32", "--num-frames", "9", "--prompt", "a cat", "--json")
_RUN_ALL = """
import contextlib, io, json, sys
from flowblend_plugins.cli import run
records = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run([*arguments, "--out", f"{sys.argv[2]}/{number}"])
    records.append(json.loads(out.getvalue()) if code == 0 else {"code": code})
print(json.dumps(records))
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command of the page wrote, by the name of its row."""
    home = tmp_path_factory.mktemp("home")
    lay_out(home / "hub")
    arguments = [[*shlex.split(command)[1:], *SMALL_SIZE] for *_, command in ROWS]
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", _RUN_ALL, json.dumps(arguments), str(home / "out")],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert all("trace" in record for record in found), ran.stderr
    return {row[0]: record for row, record in zip(ROWS, found, strict=True)}


def test_the_page_has_every_row_of_the_paper() -> None:
    assert len(ROWS) == 9
    assert {name: int(tera) for name, _, _, tera, _ in ROWS}.items() >= PUBLISHED.items()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_command_takes_the_steps_of_its_row(records: dict[str, Any], row: tuple[str, ...]) -> None:
    (generation,) = records[row[0]]["trace"]["generations"]
    letters = [call["denoiser"] for call in generation["calls"]]
    assert (letters.count("L"), letters.count("S")) == (int(row[1]), int(row[2]))
    assert not generation["error"]


def test_the_distilled_small_denoiser_is_not_guided(records: dict[str, Any]) -> None:
    """By the FLOPs of the calls really made, against those of the two denoisers alone."""

    def linear(name: str) -> float:
        return records[name]["trace"]["generations"][0]["flops"]["linear"]

    large_step, small_step = linear("LLL, Euler") / 40, linear("SSS, Euler") / 40  # two branches
    assert linear("LDL") == pytest.approx(20 * large_step + 4 * small_step / 2)
    assert linear("DDD") == pytest.approx(8 * small_step / 2)
    assert linear("LSL, DPM++") == pytest.approx(9 * large_step + 11 * small_step)


def test_the_distilled_rows_sample_at_the_distilled_levels(records: dict[str, Any]) -> None:
    calls = records["LDL"]["trace"]["generations"][0]["calls"]
    assert [call["sigma"] for call in calls if call["denoiser"] == "S"] == pytest.approx(
        [0.9875, 0.9812, 0.975, 0.9094]
    )
    calls = records["DDD"]["trace"]["generations"][0]["calls"]
    assert [call["sigma"] for call in calls][:3] == pytest.approx([1.0, 0.993, 0.987], abs=1e-3)


# At full size --------------------------------------------------------------------------------------------------------


@cache
def branch(name: str) -> float:
    """TFLOPs of one forward of one guidance branch on 65 frames with a condition, linear layers only."""
    return forward(name, "ltx 608x352").linear / 1e12


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_totals_to_the_whole_number(row: tuple[str, ...]) -> None:
    name, large, small, tera, _ = row
    small_branches = 1 if name in ("LDL", "DDD") else 2
    total = int(large) * 2 * branch("ltx 13B") + int(small) * small_branches * branch("ltx 2B")
    assert round(total) == int(tera)


def test_the_totals_need_65_frames_and_a_condition() -> None:
    from flowblend_plugins.trace.flops import count_forward, describe_inputs
    from tests.trace.test_published_flops import denoiser

    def large_only(frames: int, per_token_timestep: bool) -> float:
        call = ltx_call(frames, 11, 19, per_token_timestep=per_token_timestep)
        large = denoiser("ltx 13B")
        return 40 * count_forward(type(large), large.config, describe_inputs((), call)).linear / 1e12

    page = (ROOT / "docs" / "flops.md").read_text(encoding="utf-8")
    assert round(large_only(9, per_token_timestep=True)) == 1748
    assert f"and {large_only(8, per_token_timestep=True):.1f}; the totals need 9" in page  # 61 frames
    assert f"in 20 steps is then {large_only(9, per_token_timestep=False):.1f}." in page  # text-to-video
