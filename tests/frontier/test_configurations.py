"""Configuration files, and who reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowblend_plugins as fb
from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.testing import generate, tiny_wan_denoiser, tiny_wan_pipeline
from flowblend_research.frontier.__main__ import main as frontier

CONTENT = {"schedule": "L:2,S:2,L:1", "adapters": ["corrected(damping=0.5)"], "pair": "reference"}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(CONTENT | changes))
        return path

    return write


def test_the_former_command_names_what_takes_its_place(flowblend: Callable[..., Any]) -> None:
    result = flowblend("tune", "--min-psnr", 25)
    assert result.code == 2
    assert "`flowblend plan --min-psnr 25`" in result.error_line
    assert " tune " not in flowblend("--help").out


def test_a_configuration_is_what_enable_takes(written: Callable[..., Path]) -> None:
    by_file, by_hand = tiny_wan_pipeline(), tiny_wan_pipeline()
    with fb.enable(by_file, tiny_wan_denoiser(), **fb.read_configuration(written())) as blend:
        found = generate(by_file, num_inference_steps=5)
        assert blend.schedule.describe(5) == "L 1-2, S 3-4, L 5"
    with fb.enable(by_hand, tiny_wan_denoiser(), "L:2,S:2,L:1", adapters=["corrected(damping=0.5)"]):
        assert (generate(by_hand, num_inference_steps=5) == found).all()


def test_run_takes_a_configuration(
    flowblend: Callable[..., Any], small_run: list[str], written: Callable[..., Path], tmp_path: Path
) -> None:
    result = flowblend(*small_run, "--configuration", written(pair=None), "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["schedule"] == "L:2,S:2,L:1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"pair": "ltx"}, ["ltx", "reference", "--pair reference"]),
        ({"schedule": None}, ["schedule", "a text"]),
        ({"adapters": "corrected"}, ["adapters", "a list"]),
        ({"adapters": ["no_such"]}, ["no_such"]),
        ({"schedule": "L:2,Q:1"}, ["L:2,Q:1"]),
    ],
)
def test_a_wrong_configuration_is_one_line(
    flowblend: Callable[..., Any],
    written: Callable[..., Path],
    tmp_path: Path,
    content: dict[str, Any],
    words: list[str],
) -> None:
    result = flowblend("run", "--configuration", written(**content), "--out", tmp_path / "out")
    assert result.code in (1, 2)
    for word in words:
        assert word in result.error_line


def test_a_schedule_beside_a_configuration_is_refused(
    flowblend: Callable[..., Any], written: Callable[..., Path], tmp_path: Path
) -> None:
    result = flowblend("run", "--configuration", written(), "--schedule", "LSL", "--out", tmp_path / "out")
    assert result.code == 2
    assert "Leave --schedule out" in result.error_line


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(FlowBlendError, match="does not exist"):
        fb.read_configuration(path)
    path.write_text("{")
    with pytest.raises(FlowBlendError, match="cannot be read"):
        fb.read_configuration(path)
    path.write_text("[]")
    with pytest.raises(FlowBlendError, match="expected an object"):
        fb.read_configuration(path)


def test_the_frontier_is_measured_drawn_and_told(tmp_path: Path, written: Callable[..., Path]) -> None:
    path = written(api_version=1, front=[{"schedule": "L:8,S:8,L:4", "adapters": ["corrected"]}])
    frontier(["--quick", "--prompts", "2", "--plans", str(path), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "frontier.json").read_text())
    kinds = {one["technique"] for one in found["points"]}
    assert {"computed", "plain LSL", "TeaCache", "cache-dit", "fewer steps, UniPC", "LSL + TeaCache"} <= kinds
    for one in found["points"]:
        assert one["speedup_over_large"] > 0
        assert one["psnr_db"] > 5
        assert 0 <= one["alignment"] <= 1
        assert one["frechet"] > 0
    assert {one["technique"] for one in found["advantage_at_equal_psnr"]} == {
        name for name in kinds if name != "computed" and not name.startswith("LSL +")
    }
    assert (tmp_path / "frontier.png").stat().st_size > 20_000
    assert "## At equal fidelity" in (tmp_path / "frontier.md").read_text()


def test_the_frontier_needs_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no result of `flowblend plan`"):
        frontier(["--quick", "--plans", str(tmp_path / "none.json"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        frontier(["--prompts", "1"])
    assert "at least 2" in capsys.readouterr().err
