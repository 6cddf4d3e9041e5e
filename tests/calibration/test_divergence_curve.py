"""``calibrate divergence``: the generations are large-only's own, and the curve is what the two denoisers say."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.calibration.curve import DivergenceCurve
from flowblend_plugins.calibration.divergence import shadowed
from flowblend_plugins.calibration.measuring import Order, measure_divergence
from flowblend_plugins.errors import AdapterError, ScheduleError
from flowblend_plugins.testing import PipelineSnapshot, tiny_wan_denoiser

STEPS = 6


def test_the_small_denoiser_has_no_influence(make_order: Callable[..., Order]) -> None:
    order = make_order(STEPS)
    plain = [order.generate(number, "latent").frames for number in range(2)]
    before = PipelineSnapshot.of(order.pipe)
    seen: list[torch.Tensor] = []

    def keep(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == STEPS - 1:
            seen.append(tensors["latents"].clone())
        return {}

    watched = make_order(STEPS, call={**order.call, "callback_on_step_end": keep})
    assert measure_divergence(watched).branches
    assert len(seen) == 2
    assert all(torch.equal(one, wanted) for one, wanted in zip(seen, plain, strict=True))
    assert not before.differences(order.pipe)


def test_mean_and_spread_over_prompts(make_order: Callable[..., Order]) -> None:
    order = make_order(STEPS)
    curve = measure_divergence(order)
    by_prompt = []
    with fb.enable(order.pipe, order.small, "LLL") as blend:
        for number in range(2):
            with shadowed(blend.trace, 5.0) as shadow:
                order.generate(number, "latent")
            by_prompt.append([one for one in shadow.divergences if one.branch == "guided"])
    assert set(curve.branches) == {"cond", "uncond", "guided"}
    assert curve.deciding_branch == "guided"
    for index, (cosine, l2) in enumerate(
        zip(curve.branches["guided"].cosine, curve.branches["guided"].relative_l2, strict=True)
    ):
        found = [run[index] for run in by_prompt]
        assert cosine.mean == pytest.approx(statistics.mean(one.cosine for one in found))
        assert l2.mean == pytest.approx(statistics.mean(one.relative_l2 for one in found))
        assert l2.deviation == pytest.approx(statistics.stdev(one.relative_l2 for one in found))
        assert l2.deviation > 0.0
    assert len(curve.sigmas) == STEPS
    assert list(curve.sigmas) == sorted(curve.sigmas, reverse=True)  # type: ignore[type-var]


def test_it_is_written_and_read(make_order: Callable[..., Order], tmp_path: Path) -> None:
    curve = measure_divergence(make_order(STEPS))
    path = tmp_path / "divergence.json"
    path.write_text(json.dumps(curve.to_json(), allow_nan=False))
    assert DivergenceCurve.load(path) == curve
    assert curve.setting.sampler.class_name == "UniPCMultistepScheduler"
    assert curve.setting.num_timesteps == STEPS
    assert curve.setting.guidance_scale == 5.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json", "no JSON file"),
        ("[1]", "holds 'list'"),
        ('{"kind": "stage_boundaries"}', "'velocity_divergence' is needed"),
        ('{"kind": "velocity_divergence", "api_version": 9}', "version 9"),
        ('{"kind": "velocity_divergence", "api_version": 1}', "incomplete"),
    ],
)
def test_what_is_no_curve_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "divergence.json"
    path.write_text(text)
    with pytest.raises(ScheduleError, match=said):
        DivergenceCurve.load(path)
    with pytest.raises(ScheduleError, match="cannot be read"):
        DivergenceCurve.load(tmp_path / "nowhere.json")


def test_only_solvers_may_be_stacked(make_order: Callable[..., Order]) -> None:
    solver = make_order(
        call={"height": 32, "width": 32, "num_frames": 9}, adapters=["flow_heun(num_inference_steps=5)"]
    )
    curve = measure_divergence(solver)
    assert len(curve.sigmas) == curve.setting.num_timesteps == 9  # Heun calls twice a step, but the last
    assert curve.setting.adapters == ("flow_heun(num_inference_steps=5)",)
    with pytest.raises(AdapterError, match="first_block_cache would change what they answer"):
        measure_divergence(make_order(small=tiny_wan_denoiser(layers=2), adapters=["first_block_cache(threshold=0.1)"]))


def test_the_command(flowblend: Callable[..., Any], saved_pair: Path, tmp_path: Path) -> None:
    pair = ("--large", saved_pair / "large", "--small", saved_pair / "small")
    size = ("--height", 32, "--width", 32, "--num-frames", 9, "--steps", 4)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n\na circle\n")
    out, plot = tmp_path / "new" / "d.json", tmp_path / "d.svg"
    arguments = ("calibrate", "divergence", *pair, *size, "--prompts-file", prompts, "--out", out)
    result = flowblend(*arguments, "--plot", plot)
    assert result.code == 0, result.err
    assert "over 2 prompts" in result.out
    bars = [line.count("█") for line in result.out.splitlines()[2:6]]
    curve = DivergenceCurve.load(out)
    means = [one.mean for one in curve.branches["guided"].relative_l2]
    assert max(bars) == 40
    assert bars.index(40) == means.index(max(means))
    assert plot.read_text().startswith("<?xml")
    assert json.loads(flowblend(*arguments, "--json").out) == json.loads(out.read_text()) == curve.to_json()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prompts-file", "nowhere.txt"), "cannot be read as text"),
        (("--plot", "d.gif"), "must end in .png or .svg"),
        (("--large", "here"), "no example prompts"),
        (("--large", "here", "--prompt", "a cat"), "Give --small too"),
        (("--pair", "nobody"), "there is no such pair"),
        (("--pair", "wan2.2-t2v"), "two denoisers only"),
    ],
)
def test_bad_input_is_one_line(
    flowblend: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = flowblend("calibrate", "divergence", "--out", tmp_path / "d.json", *options)
    assert result.code == 2
    assert said in result.error_line
