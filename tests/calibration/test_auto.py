"""``schedule="auto"``: the calibrated boundaries, and nothing where they do not belong."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.calibration.calibration import Calibration
from flowblend_plugins.calibration.curve import DivergenceCurve
from flowblend_plugins.calibration.measuring import Order, boundaries_by_divergence
from flowblend_plugins.testing import PipelineSnapshot, tiny_wan_denoiser

STEPS = 6


@pytest.fixture
def calibrated(make_order: Callable[..., Order]) -> tuple[Order, Calibration]:
    order = make_order(STEPS)
    return order, dataclasses.replace(boundaries_by_divergence(order), early_steps=2, late_steps=1)


@pytest.mark.parametrize("from_file", [False, True])
def test_it_is_the_schedule_at_these_boundaries(
    calibrated: tuple[Order, Calibration], tmp_path: Path, from_file: bool
) -> None:
    order, calibration = calibrated
    path = tmp_path / "b.json"
    path.write_text(json.dumps(calibration.to_json()))
    with fb.enable(order.pipe, order.small, "L:2,S:3,L:1"):
        expected = order.generate(0, "latent").frames
    before = PipelineSnapshot.of(order.pipe)
    given = path if from_file else calibration
    with fb.enable(order.pipe, order.small, "auto", calibration=given) as blend:
        assert torch.equal(order.generate(0, "latent").frames, expected)
        assert [call.step.denoiser for call in blend.trace.generations[0].calls] == [*"LLLLSSSSSSLL"]
        assert blend.trace.generations[0].notes == []
    assert not before.differences(order.pipe)


def test_another_number_of_steps_is_refused_and_nothing_stays(calibrated: tuple[Order, Calibration]) -> None:
    order, calibration = calibrated
    before = PipelineSnapshot.of(order.pipe)
    with fb.enable(order.pipe, order.small, "auto", calibration=calibration):
        with pytest.raises(fb.ScheduleError, match="is of 6 steps, but here there are 8"):
            order.pipe(**{**order.call, "prompt": "a circle", "num_inference_steps": 8})
        order.generate(0, "latent")
    assert not before.differences(order.pipe)


def test_steps_that_an_adapter_sets_are_seen(calibrated: tuple[Order, Calibration]) -> None:
    order, calibration = calibrated
    call = {**order.call, "prompt": "a circle"}
    del call["num_inference_steps"]
    with (
        fb.enable(order.pipe, order.small, "auto", calibration=calibration, adapters=["unipc(num_inference_steps=9)"]),
        pytest.raises(fb.ScheduleError, match="is of 6 steps, but here there are 9"),
    ):
        order.pipe(**call)


def test_another_solver_is_refused_when_enabling(calibrated: tuple[Order, Calibration]) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    order, calibration = calibrated
    before = PipelineSnapshot.of(order.pipe)
    said = "solver UniPCMultistepScheduler with shift 3, but here it is FlowMatchEulerDiscreteScheduler with shift 3"
    with pytest.raises(fb.ScheduleError, match=said):
        fb.enable(order.pipe, order.small, "auto", calibration=calibration, adapters=["flow_euler"])
    assert not before.differences(order.pipe)
    with fb.enable(order.pipe, order.small, "auto", calibration=calibration):
        own, order.pipe.scheduler = order.pipe.scheduler, FlowMatchEulerDiscreteScheduler(shift=3.0)
        with pytest.raises(fb.ScheduleError, match="FlowMatchEulerDiscreteScheduler"):
            order.generate(0, "latent")
        order.pipe.scheduler = own


def test_another_shift_is_refused(calibrated: tuple[Order, Calibration]) -> None:
    order, calibration = calibrated
    order.pipe.scheduler = type(order.pipe.scheduler).from_config(order.pipe.scheduler.config, flow_shift=5.0)
    with pytest.raises(fb.ScheduleError, match="with shift 3, but here it is UniPCMultistepScheduler with shift 5"):
        fb.enable(order.pipe, order.small, "auto", calibration=calibration)


def test_another_pair_is_refused(calibrated: tuple[Order, Calibration]) -> None:
    order, calibration = calibrated
    before = PipelineSnapshot.of(order.pipe)
    for other in (tiny_wan_denoiser(seed=9), tiny_wan_denoiser(layers=2)):
        with pytest.raises(fb.ScheduleError, match=r"of pair 'tiny', whose small denoiser is a .*, but here it is a "):
            fb.enable(order.pipe, other, "auto", calibration=calibration)
    assert not before.differences(order.pipe)
    with torch.no_grad():
        order.pipe.transformer.proj_out.weight.add_(1.0)  # fine-tuned: the same class and size
        order.pipe.transformer.patch_embedding.weight.add_(1.0)
    with pytest.raises(fb.ScheduleError, match="whose large denoiser is"):
        fb.enable(order.pipe, order.small, "auto", calibration=calibration)


def test_the_same_pair_in_another_dtype_is_the_same(calibrated: tuple[Order, Calibration]) -> None:
    order, calibration = calibrated
    order.pipe.to(torch.bfloat16)
    with fb.enable(order.pipe, order.small, "auto", calibration=calibration) as blend:
        assert blend.schedule == calibration.schedule


def test_another_guidance_is_noted(calibrated: tuple[Order, Calibration]) -> None:
    order, calibration = calibrated
    with fb.enable(order.pipe, order.small, "auto", calibration=calibration) as blend:
        order.pipe(**{**order.call, "prompt": "a circle", "guidance_scale": 3.0})
        assert blend.trace.generations[0].notes == ["boundaries were calibrated at guidance scale 5, and this is 3"]
        assert "calibrated at guidance scale 5" in blend.trace.summary()


def test_contradictions_are_refused(calibrated: tuple[Order, Calibration], tmp_path: Path) -> None:
    order, calibration = calibrated
    with pytest.raises(fb.ScheduleError, match="give calibration="):
        fb.enable(order.pipe, order.small, "auto")
    with pytest.raises(fb.ScheduleError, match='goes with schedule="auto"'):
        fb.enable(order.pipe, order.small, "LSL", calibration=calibration)
    with pytest.raises(fb.ScheduleError, match="Leave early= and late= out"):
        fb.enable(order.pipe, order.small, "auto", early=0.3, calibration=calibration)
    with pytest.raises(fb.ScheduleError, match="calibrate boundaries"):
        fb.enable(order.pipe, order.small, "auto", calibration=tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--schedule", "auto"), "needs --calibration"),
        (("--schedule", "auto", "--calibration", "nowhere.json"), "nowhere.json cannot be read"),
        (("--schedule", "LSL", "--calibration", "b.json"), "goes with --schedule auto"),
        (("--schedule", "auto", "--calibration", "b.json", "--early", "0.3"), "Leave --early and --late out"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    flowblend: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = flowblend("run", "--out", tmp_path, *options)
    assert result.code == 2
    assert said in result.error_line


def test_the_command_line_refuses_steps_before_loading(
    flowblend: Callable[..., Any], calibrated: tuple[Order, Calibration], tmp_path: Path
) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(calibrated[1].to_json()))
    for plan in ((), ("--dry-run",)):
        arguments = ("--large", "nowhere", "--small", "nowhere", "--steps", 8, "--out", tmp_path / "out", *plan)
        result = flowblend("run", "--schedule", "auto", "--calibration", path, *arguments)
        assert result.code == 2
        assert "is of 6 steps, but here there are 8" in result.error_line
    other = flowblend("run", "--schedule", "auto", "--calibration", path, "--steps", 6, "--out", tmp_path / "out")
    assert "of pair 'tiny', whose large denoiser" in other.error_line


def test_the_shipped_calibration_as_the_docs_use_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    (example,) = re.findall(r"```python\n(.*?)```", (root / "docs" / "calibration.md").read_text(), re.S)
    exec(compile(example, "docs/calibration.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == example.split("# ")[-1].strip()
    calibration = Calibration.load("docs/reference_boundaries.json")
    assert DivergenceCurve.load("docs/reference_divergence.json").setting == calibration.setting
