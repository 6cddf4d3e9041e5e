"""Computed placements: moments, forecasts and dynamic programme against brute force, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

import flowblend_plugins as fb
from flowblend_adapters.blending.forecast.calibration import calibrate_forecast
from flowblend_adapters.blending.forecast.check import check_forecast, fitted_growth
from flowblend_adapters.blending.forecast.moments import Place, VelocityMoments
from flowblend_adapters.blending.forecast.own_sampling import OwnSampling
from flowblend_adapters.blending.forecast.planning.error_model import (
    ErrorModel,
    growth_of_errors,
    runs_of,
    solver_error,
)
from flowblend_adapters.blending.forecast.planning.placement import best_placements
from flowblend_adapters.blending.forecast.planning.plan import Budget, plan, plan_front, predicted_psnr_db
from flowblend_adapters.blending.forecast.sampler import Sampler
from flowblend_plugins.errors import UsageError
from flowblend_plugins.testing import generate
from tests.conftest import Result
from tests.exactness.pipelines import FAMILIES, STABLE_DIFFUSION

GUIDANCE = 5.0
GROWTH = 20.0
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
LINEAR: dict[str, Callable[[], Any]] = {
    "unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "dpm++2m": lambda: DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **FLOW),
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=2.0),
    "ddim": lambda: DDIMScheduler(clip_sample=False, steps_offset=1),
}


def sampler_of(num_steps: int, name: str = "unipc") -> Sampler:
    scheduler = LINEAR[name]()
    scheduler.set_timesteps(num_steps)
    return Sampler.of(scheduler)


def random_moments(sampler: Sampler, num_values: int = 300) -> tuple[torch.Tensor, VelocityMoments]:
    """Velocities ``[2, N, values]`` that drift from step to step, and their moments at the sampler's own timesteps."""
    rows = torch.randn(2, sampler.num_steps, num_values, dtype=torch.float64).cumsum(1)
    flat = rows.flatten(0, 1)
    own = OwnSampling(sampler=sampler, growth=GROWTH, psnr_offset_db=16.0, large_step_ms=10.0, forecast_step_ms=1.0)
    return rows, VelocityMoments(
        class_name="WanTransformer3DModel",
        config={},
        guidance_scale=GUIDANCE,
        prompts=("a red circle",),
        branches=("cond", "uncond"),
        timesteps=tuple(sampler.timesteps.tolist()),
        moments=(flat @ flat.T / num_values).numpy(),
        own_sampling=own,
    )


def guided(rows: torch.Tensor) -> torch.Tensor:
    return rows[1] + GUIDANCE * (rows[0] - rows[1])


def forecast_by_hand(moments: VelocityMoments, rows: torch.Tensor, known: tuple[int, ...], step: int) -> torch.Tensor:
    """The guided forecast, with the adapter's own weights on the velocities themselves."""
    timesteps = moments.timesteps
    places = [Place(branch, timesteps[one]) for branch in ("cond", "uncond") for one in known]
    said = [rows[number, one] for number in range(2) for one in known]
    branches = []
    for branch in ("cond", "uncond"):
        weights = moments.weights(Place(branch, timesteps[step]), places)
        branches.append(sum(float(weight) * one for weight, one in zip(weights, said, strict=True)))
    return guided(torch.stack(branches))  # type: ignore[arg-type]


def error_by_hand(moments: VelocityMoments, rows: torch.Tensor, sampler: Sampler, large: tuple[int, ...]) -> float:
    """Every run's error as a vector."""
    total, run = 0.0, torch.zeros(rows.shape[-1], dtype=torch.float64)
    gains = sampler.weights * growth_of_errors(sampler, GROWTH)
    for step in range(sampler.num_steps):
        if step in large:
            total, run = total + float(run.square().mean()), torch.zeros_like(run)
            continue
        known = tuple(one for one in large if one < step)[-2:]
        run = run + gains[step] * (forecast_by_hand(moments, rows, known, step) - guided(rows)[step])
    return total + float(run.square().mean())


@pytest.mark.parametrize("name", LINEAR)
def test_a_samplers_weights_are_what_its_scheduler_makes_of_velocities(name: str) -> None:
    sampler, scheduler = sampler_of(7, name), LINEAR[name]()
    scheduler.set_timesteps(7)
    outputs = torch.randn(7, 1, 50, dtype=torch.float64)
    results = []
    for noise in (torch.zeros(1, 50, dtype=torch.float64), torch.randn(1, 50, dtype=torch.float64)):
        scheduler.set_timesteps(7)
        sample = noise
        for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
            sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        results.append(sample.double())
    expected = torch.from_numpy(sampler.weights) @ outputs[:, 0]
    assert results[0][0].numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    share = (results[1] - results[0]) / noise
    assert float(share.std()) < 1e-3  # the noise's own weight: the same for every value
    assert sampler.alphas**2 + sampler.sigmas**2 == pytest.approx(1.0) or sampler.alphas + sampler.sigmas == (
        pytest.approx(1.0)
    )
    read = Sampler.from_json(json.loads(json.dumps(sampler.to_json())))
    assert read.weights == pytest.approx(sampler.weights)
    assert not read.differences(scheduler)


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler(), EulerDiscreteScheduler()])
def test_a_sampler_that_is_no_weighted_sum_of_its_steps_is_refused(scheduler: Any) -> None:
    scheduler.set_timesteps(6)
    with pytest.raises(fb.StackError, match="cannot be planned for"):
        Sampler.of(scheduler)


def test_probing_leaves_the_scheduler_as_it_was() -> None:
    scheduler = LINEAR["unipc"]()
    scheduler.set_timesteps(5)
    Sampler.of(scheduler)
    assert scheduler.step_index is None
    assert scheduler.model_outputs == [None, None]


@pytest.mark.parametrize("name", LINEAR)
def test_expected_errors_are_those_of_the_velocities_themselves(name: str) -> None:
    sampler = sampler_of(8, name)
    rows, moments = random_moments(sampler)
    model = ErrorModel(moments, sampler, GROWTH)
    for large in ((0,), (0, 1, 2, 4, 7), (0, 3, 4), (0, 1, 5), tuple(range(8))):
        assert model.total(large) == pytest.approx(error_by_hand(moments, rows, sampler, large), rel=1e-6, abs=1e-12)
    relative = model.relative_errors((1, 3), (5, 6))
    for step, error in zip((5, 6), relative, strict=True):
        by_hand = forecast_by_hand(moments, rows, (1, 3), step) - guided(rows)[step]
        assert error == pytest.approx(float(by_hand.norm() / guided(rows)[step].norm()), rel=1e-6)


def test_the_distance_of_two_samplers_is_that_of_their_sums() -> None:
    """Euler's method and UniPC at the same noise levels, so that every velocity is one that was measured."""
    unipc = sampler_of(8, "unipc")
    levels = unipc.sigmas.tolist()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=levels)
    euler = dataclasses.replace(Sampler.of(scheduler), timesteps=unipc.timesteps)
    rows, moments = random_moments(unipc)
    difference = torch.from_numpy(
        euler.weights * growth_of_errors(euler, GROWTH) - unipc.weights * growth_of_errors(unipc, GROWTH)
    ) @ guided(rows)
    assert solver_error(moments, unipc, unipc, GROWTH) == 0.0
    assert solver_error(moments, euler, unipc, GROWTH) == pytest.approx(float(difference.square().mean()), rel=1e-6)


def test_runs_are_the_steps_between_large_ones() -> None:
    assert list(runs_of((0, 1, 4), 7)) == [((0, 1), range(2, 4)), ((1, 4), range(5, 7))]
    assert list(runs_of((0,), 3)) == [((0,), range(1, 3))]
    assert list(runs_of((0, 1, 2), 3)) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_dynamic_programme_equals_trying_everything(seed: int) -> None:
    number = 7
    torch.manual_seed(seed)
    sampler = sampler_of(number)
    _, moments = random_moments(sampler)
    model = ErrorModel(moments, sampler, GROWTH)
    for count, (steps, cost) in enumerate(best_placements(model.costs()), start=1):
        every = [(0, *others) for others in itertools.combinations(range(1, number), count - 1)]
        best = min(every, key=model.total)
        assert len(steps) == count
        assert cost == pytest.approx(model.total(steps), rel=1e-9, abs=1e-12)
        assert cost == pytest.approx(model.total(best), rel=1e-9, abs=1e-12)


def test_with_arbitrary_costs_too() -> None:
    """Costs that no velocities would have: the last two large steps decide, and nothing else."""
    number, rng = 6, np.random.default_rng(0)
    costs = rng.uniform(size=(number, number, number + 1))
    costs[:, np.arange(number), np.arange(number) + 1] = 0.0

    def summed(steps: tuple[int, ...]) -> float:
        before = (0, *steps[:-1])
        return float(sum(costs[j, k, m] for j, k, m in zip(before, steps, (*steps[1:], number), strict=True)))

    for count, (steps, cost) in enumerate(best_placements(costs), start=1):
        every = [(0, *others) for others in itertools.combinations(range(1, number), count - 1)]
        assert cost == pytest.approx(min(map(summed, every)))
        assert summed(steps) == pytest.approx(cost)


@pytest.mark.parametrize("growth", [1.0, 20.0, 100.0])
def test_the_growth_of_errors_is_found_again(growth: float) -> None:
    """From what stacks with this growth, and 16 dB for a squared error of 1, would give."""
    sampler = sampler_of(12)
    _, moments = random_moments(sampler)
    model = ErrorModel(moments, sampler, growth)
    placements = [(0, 1, 2, 5), (0, 1, 3, 6, 9), tuple(range(0, 12, 2))]
    observed = {one: predicted_psnr_db(model.total(one), 16.0) for one in placements}
    assert fitted_growth(moments, sampler, observed) == (growth, pytest.approx(16.0))


def test_the_front_falls_and_ends_with_large_only(tmp_path: Path) -> None:
    _, moments = random_moments(sampler_of(9))
    front = plan_front(moments, "moments.json")
    errors = [stack.squared_error for stack in front]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)
    assert (front[-1].schedule, front[-1].adapters, front[-1].psnr_db) == ("L:9", (), float("inf"))
    for stack in front[:-1]:
        assert sum(stack.error_shares) == pytest.approx(1.0)
        assert stack.adapters == ("forecast(recall_every=0, moments='moments.json', as_calibrated=True)",)
        assert stack.time_fraction == pytest.approx(0.1 + 0.9 * stack.flops_fraction)


@pytest.mark.parametrize(
    ("budget", "is_kept"),
    [
        ({"large_steps": 4}, lambda one: len(one.large_steps) <= 4),
        ({"flops_fraction": 0.5}, lambda one: one.flops_fraction <= 0.5),
        ({"time_fraction": 0.5}, lambda one: one.time_fraction <= 0.5),
        ({"min_psnr_db": 12.0}, lambda one: one.psnr_db >= 12.0),
    ],
)
def test_a_budget_is_kept_and_used_up(budget: dict[str, Any], is_kept: Callable[[Any], bool], tmp_path: Path) -> None:
    path = tmp_path / "moments.json"
    path.write_text(json.dumps(random_moments(sampler_of(9))[1].to_json()))
    found = plan(path, Budget(**budget))
    kept = [one for one in found.front if is_kept(one)]
    assert found.chosen == (kept[0] if "min_psnr_db" in budget else kept[-1])


def test_budgets_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "moments.json"
    _, moments = random_moments(sampler_of(9))
    path.write_text(json.dumps(moments.to_json()))
    with pytest.raises(UsageError, match="was given 0"):
        Budget()
    with pytest.raises(UsageError, match="was given 2"):
        Budget(large_steps=3, min_psnr_db=30.0)
    with pytest.raises(UsageError, match="nothing keeps this budget"):
        plan(path, Budget(flops_fraction=0.01))
    path.write_text(json.dumps({key: value for key, value in moments.to_json().items() if key != "own_sampling"}))
    with pytest.raises(UsageError, match="flowblend calibrate forecast"):
        plan(path, Budget(large_steps=3))
    plan(path, Budget(large_steps=3), sampler=sampler_of(9))  # a sampler that is given will do
    with pytest.raises(UsageError, match="decibels cannot be asked for"):
        plan(path, Budget(min_psnr_db=20.0), sampler=sampler_of(9))


def calibrated(family: Any, path: Path, steps: int = 6, guidance_scale: float = GUIDANCE) -> Path:
    def calls(count: int) -> list[dict[str, Any]]:
        return [
            {
                **family.arguments(1),
                "generator": torch.Generator().manual_seed(3),
                "output_type": "latent",
                "num_inference_steps": count,
                "guidance_scale": guidance_scale,
            }
        ]

    pipe = family.pipe()
    with torch.no_grad():
        moments = check_forecast(pipe, calibrate_forecast(pipe, calls=calls(12)), calls=calls(steps))
    path.write_text(json.dumps(moments.to_json()))
    return path


def run(pipe: Any, family: Any, **changes: Any) -> torch.Tensor:
    call = {"num_inference_steps": 6, "guidance_scale": GUIDANCE, **changes}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        output = pipe(**{**family.arguments(1), "generator": generator, "output_type": "latent", **call})
    return output.frames if hasattr(output, "frames") else output.images


@pytest.mark.parametrize("family", [FAMILIES["wan"], STABLE_DIFFUSION], ids=["wan", "unet"])
def test_from_a_calibration_to_a_generation(family: Any, tmp_path: Path) -> None:
    path = calibrated(family, tmp_path / "moments.json")
    pipe = family.pipe()
    expected = run(pipe, family)
    for budget in (Budget(large_steps=3), Budget(large_steps=6)):
        chosen = plan(path, budget).chosen
        with fb.enable(pipe, family.make_small(), chosen.schedule, adapters=list(chosen.adapters)) as blend:
            made = run(pipe, family)
            assert blend.trace.last is not None
            answers = [(call.step.denoiser, call.outcome) for call in blend.trace.last.calls]
        assert {"predict"} == {outcome for letter, outcome in answers if letter == "S"} or len(chosen.large_steps) == 6
        assert torch.equal(made, expected) == (len(chosen.large_steps) == 6)
    assert torch.equal(run(pipe, family), expected)


def test_another_call_than_the_calibrated_one_is_refused(tmp_path: Path) -> None:
    family = FAMILIES["wan"]
    chosen = plan(calibrated(family, tmp_path / "moments.json"), Budget(large_steps=3)).chosen
    pipe = family.pipe()
    expected = run(pipe, family)
    with fb.enable(pipe, family.make_small(), "LLS", early=0.5, adapters=list(chosen.adapters)):
        with pytest.raises(fb.StackError, match=r"guidance scale 5, not 6"):
            run(pipe, family, guidance_scale=6.0)
        with pytest.raises(fb.StackError, match="6 steps, not 8"):
            run(pipe, family, num_inference_steps=8)
    other = [*chosen.adapters, "dpmpp_2m"]
    with (
        fb.enable(pipe, family.make_small(), chosen.schedule, adapters=other),
        pytest.raises(fb.StackError, match=r"was computed for .*flowblend plan"),
    ):
        run(pipe, family)
    assert torch.equal(run(pipe, family), expected)
    with pytest.raises(fb.AdapterError, match="as_calibrated=True needs moments"):
        fb.enable(pipe, family.make_small(), "LSL", adapters=["forecast(as_calibrated=True)"])


def test_both_branches_in_one_call_are_forecast_each_from_both(tmp_path: Path) -> None:
    """A UNet is called once for both; halves of its output are the branches."""
    family = STABLE_DIFFUSION
    path = calibrated(family, tmp_path / "moments.json")
    moments = VelocityMoments.read(path)
    assert moments.branches == ("cond", "uncond")
    pipe, seen = family.pipe(), []
    handle = pipe.unet.register_forward_hook(lambda module, args, output: seen.append(output[0].clone()))
    adapter = f"forecast(recall_every=0, moments={str(path)!r})"
    inputs: list[Any] = []
    with fb.enable(pipe, family.make_small(), "L:3,S:3", adapters=[adapter]):
        step = pipe.scheduler.step
        pipe.scheduler.step = lambda output, *args, **kwargs: (inputs.append(output), step(output, *args, **kwargs))[1]
        try:
            run(pipe, family)
        finally:
            del pipe.scheduler.step
    handle.remove()
    assert len(seen) == 3
    times = [float(one) for one in pipe.scheduler.timesteps]
    places = [Place(branch, times[index]) for index in (1, 2) for branch in ("uncond", "cond")]
    said = [part for index in (1, 2) for part in seen[index].chunk(2)]
    halves = {}
    for branch in ("uncond", "cond"):
        weights = moments.weights(Place(branch, times[3]), places)
        halves[branch] = sum(float(weight) * part for weight, part in zip(weights, said, strict=True))
    expected = halves["uncond"] + GUIDANCE * (halves["cond"] - halves["uncond"])
    assert torch.allclose(inputs[3], expected, atol=1e-5)


def test_the_command(flowblend: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "plan"
    result = flowblend("plan", "--min-psnr", "30", "--out", out)
    assert result.code == 0, result.err
    assert "flowblend run --configuration" in result.out
    record = json.loads((out / "plan.json").read_text())
    assert record["predicted"]["psnr_db"] >= 30.0
    assert record["pair"] == "reference"
    assert (out / "plan.png").stat().st_size > 0
    found = fb.read_configuration(out / "plan.json", "reference")
    assert found == {"schedule": record["schedule"], "adapters": record["adapters"]}
    with pytest.raises(fb.FlowBlendError, match="for pair reference"):
        fb.read_configuration(out / "plan.json", "reference-unet")
    as_json = flowblend("plan", "--flops", "0.3", "--no-plot", "--json", "--out", out)
    assert json.loads(as_json.out)["predicted"]["flops_fraction"] == 0.3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "was given 0"),
        (("--large-steps", "3", "--flops", "0.3"), "was given 2"),
        (("--large-steps", "3", "--guidance-scale", "5"), "was measured at 8"),
        (("--large-steps", "3", "--steps", "30"), "was checked with 20 steps"),
        (("--large-steps", "3", "--moments", "nowhere.json"), "there is no such file"),
        (("--time", "0.01"), "nothing keeps this budget"),
    ],
)
def test_what_the_command_refuses(
    options: tuple[str, ...], told: str, flowblend: Callable[..., Result], tmp_path: Path
) -> None:
    result = flowblend("plan", *options, "--out", tmp_path / "plan")
    assert result.code == 2
    assert told in result.error_line


def test_predictions_hold_on_prompts_that_were_not_calibrated_on() -> None:
    """How much four more large steps gain, within 3 dB: four captions are easier or harder than the calibration's."""
    from flowblend_compat_matrix.measuring.metrics import psnr_db
    from flowblend_compat_matrix.reference import load_pair
    from flowblend_compat_matrix.reference.pair import evaluation_captions
    from flowblend_research.training.wan.behaviour import generate as generate_reference

    pair, captions = load_pair(), evaluation_captions(4)
    large = generate_reference(pair, captions, seed=0)
    predicted, observed = [], []
    for num_large in (6, 10):
        chosen = plan("reference", Budget(large_steps=num_large)).chosen
        with fb.enable(pair.pipeline, pair.small, chosen.schedule, adapters=list(chosen.adapters)):
            made = generate_reference(pair, captions, seed=0)
        assert chosen.psnr_db is not None
        predicted.append(chosen.psnr_db)
        observed.append(np.mean([psnr_db(one, wanted) for one, wanted in zip(made, large, strict=True)]))
    assert predicted[1] - predicted[0] == pytest.approx(observed[1] - observed[0], abs=3.0)


def test_generate_is_left_as_it_was_after_a_check(tmp_path: Path) -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    before = generate(pipe)
    calls = [{**family.arguments(1), "output_type": "latent", "num_inference_steps": 6, "guidance_scale": GUIDANCE}]
    with torch.no_grad():
        check_forecast(pipe, calibrate_forecast(pipe, calls=calls), calls=calls)
    assert torch.equal(generate(pipe), before)


def test_the_studys_placements_and_its_summary() -> None:
    from flowblend_research.planning_study.predictions import Prediction, random_placement, summary

    rng = np.random.default_rng(0)
    for _ in range(50):
        placement = random_placement(rng, 20)
        assert placement[0] == 0
        assert list(placement) == sorted(set(placement))
        assert 2 <= len(placement) <= 16
    found = [Prediction("own", "", value, value + shift) for value, shift in ((20.0, 1.0), (25.0, -1.0), (30.0, 3.0))]
    assert summary(found)["median_abs_error_db"] == 1.0
    assert summary(found)["median_error_db"] == -1.0
    assert summary(found)["rank_correlation"] == pytest.approx(1.0)
