"""``flowblend tune``, the file it writes, and who reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowblend_plugins as fb
from flowblend_compat_matrix.tune.race import Configuration
from flowblend_compat_matrix.tune.record import read_configurations
from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.testing import generate, tiny_wan_denoiser, tiny_wan_pipeline
from flowblend_research.frontier.__main__ import main as frontier

DOCS = Path(__file__).resolve().parents[2] / "docs"
WRITTEN = {"schedule": "L:2,S:2,L:1", "adapters": ["corrected(damping=0.5)"], "pair": "reference"}


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "tuned.json"
        path.write_text(json.dumps(WRITTEN | changes))
        return path

    return write


def test_a_budget_is_needed(flowblend: Callable[..., Any], tmp_path: Path) -> None:
    result = flowblend("tune", "--out", tmp_path / "out")
    assert result.code == 2
    assert "--min-psnr" in result.error_line
    assert not (tmp_path / "out").exists()


def test_moments_of_another_denoiser_are_refused(flowblend: Callable[..., Any], tmp_path: Path) -> None:
    options = ("--pair", "reference-unet", "--moments", "reference", "--min-psnr", 20, "--out", tmp_path / "out")
    result = flowblend("tune", *options)
    assert result.code == 2
    assert "flowblend calibrate forecast" in result.error_line


def test_the_command_finds_writes_and_draws(flowblend: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--trials", 2, "--prompts", 2, "--cost", "flops", "--out", out)
    result = flowblend("tune", "--min-psnr", 18, *options)
    assert result.code == 0, result.err
    assert "Pareto front" in result.out
    record = json.loads((out / "tuned.json").read_text())
    assert record["schedule"] == record["chosen"]["schedule"]
    assert f"{record['chosen']['psnr_db']:.1f} dB" in result.out
    assert record["chosen"]["psnr_db"] >= 18
    assert record["chosen"] in record["front"]
    assert (out / "tuned.png").stat().st_size > 10_000
    assert read_configurations(out / "tuned.json") == [
        Configuration(one["schedule"], tuple(one["adapters"])) for one in record["front"]
    ]
    assert fb.read_configuration(out / "tuned.json", "reference")["schedule"] == record["schedule"]

    impossible = flowblend("tune", "--min-psnr", 98, *options)
    assert impossible.code == 1
    assert "keeps 98 dB" in impossible.err.strip().splitlines()[-1]


def test_a_configuration_is_what_enable_takes(tuned: Callable[..., Path]) -> None:
    by_file, by_hand = tiny_wan_pipeline(), tiny_wan_pipeline()
    with fb.enable(by_file, tiny_wan_denoiser(), **fb.read_configuration(tuned())) as blend:
        found = generate(by_file, num_inference_steps=5)
        assert blend.schedule.describe(5) == "L 1-2, S 3-4, L 5"
    with fb.enable(by_hand, tiny_wan_denoiser(), "L:2,S:2,L:1", adapters=["corrected(damping=0.5)"]):
        assert (generate(by_hand, num_inference_steps=5) == found).all()


def test_run_takes_a_configuration(
    flowblend: Callable[..., Any], small_run: list[str], tuned: Callable[..., Path], tmp_path: Path
) -> None:
    result = flowblend(*small_run, "--configuration", tuned(pair=None), "--json")
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
    flowblend: Callable[..., Any], tuned: Callable[..., Path], tmp_path: Path, content: dict[str, Any], words: list[str]
) -> None:
    result = flowblend("run", "--configuration", tuned(**content), "--out", tmp_path / "out")
    assert result.code in (1, 2)
    for word in words:
        assert word in result.error_line


def test_a_schedule_beside_a_configuration_is_refused(
    flowblend: Callable[..., Any], tuned: Callable[..., Path], tmp_path: Path
) -> None:
    result = flowblend("run", "--configuration", tuned(), "--schedule", "LSL", "--out", tmp_path / "out")
    assert result.code == 2
    assert "Leave --schedule out" in result.error_line


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    with pytest.raises(FlowBlendError, match="does not exist"):
        fb.read_configuration(path)
    path.write_text("{")
    with pytest.raises(FlowBlendError, match="cannot be read"):
        fb.read_configuration(path)
    path.write_text("[]")
    with pytest.raises(FlowBlendError, match="expected an object"):
        fb.read_configuration(path)
    with pytest.raises(FlowBlendError, match="no result of `flowblend tune`"):
        read_configurations(path)


def test_the_example_of_the_docs_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "tuning.md").read_text(), re.M | re.S)
    exec(code, {})
    assert capsys.readouterr().out.strip() == json.loads((DOCS / "tuned" / "time_30db.json").read_text())["schedule"]


def test_the_frontier_is_measured_drawn_and_told(tmp_path: Path, tuned: Callable[..., Path]) -> None:
    path = tuned(api_version=1, front=[{"schedule": "L:8,S:8,L:4", "adapters": ["corrected"]}])
    frontier(["--quick", "--prompts", "2", "--tuned", str(path), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "frontier.json").read_text())
    kinds = {one["technique"] for one in found["points"]}
    assert {"tuned", "plain LSL", "TeaCache", "cache-dit", "fewer steps, UniPC", "LSL + TeaCache"} <= kinds
    for one in found["points"]:
        assert one["speedup_over_large"] > 0
        assert one["psnr_db"] > 5
        assert 0 <= one["alignment"] <= 1
        assert one["frechet"] > 0
    assert {one["technique"] for one in found["advantage_at_equal_psnr"]} == {
        name for name in kinds if name != "tuned" and not name.startswith("LSL +")
    }
    assert (tmp_path / "frontier.png").stat().st_size > 20_000
    assert "## At equal fidelity" in (tmp_path / "frontier.md").read_text()


def test_the_frontier_needs_a_tuned_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no result of `flowblend tune`"):
        frontier(["--quick", "--tuned", str(tmp_path / "none.json"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        frontier(["--prompts", "1"])
    assert "at least 2" in capsys.readouterr().err
