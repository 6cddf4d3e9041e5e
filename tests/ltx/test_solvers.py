"""Solvers on every LTX pipeline: equal to the pipeline's own Euler at first order, and exact where denoisers change."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXI2VLongMultiPromptPipeline,
    UniPCMultistepScheduler,
)

import flowblend_plugins as fb
from flowblend_adapters.step_reduction.own_scheduler import step_ends_as_euler
from flowblend_adapters.step_reduction.pipeline_levels import sample_at_levels_of
from flowblend_adapters.step_reduction.solver import solvers_among
from flowblend_plugins.manager import adapters_by_name, make_plugin_manager
from tests.exactness.oracles import swapped
from tests.exactness.pipelines import FAMILIES, Family
from tests.ltx.pipelines import ALL, CONDITION, CONDITION_SOFT, LTX2, TEXT

SOLVERS = [solver.name for solver in solvers_among(adapters_by_name(make_plugin_manager()).values())]
MULTISTEP = ("deis", "dpmpp_2m", "dpmpp_3m", "unipc")
_FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def _deis() -> Any:
    scheduler = DEISMultistepScheduler(solver_order=1, **_FLOW)
    step_ends_as_euler(scheduler)
    return scheduler


FIRST_ORDER: dict[str, Callable[[], Any]] = {
    "dpmpp": lambda: DPMSolverMultistepScheduler(solver_order=1, algorithm_type="dpmsolver++", **_FLOW),
    "deis": _deis,
    "unipc": lambda: UniPCMultistepScheduler(solver_order=1, disable_corrector=list(range(99)), **_FLOW),
}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_at_first_order_every_solver_is_the_pipelines_own_euler(name: str, solver: str) -> None:
    """Also with conditions of strength below 1, whose tokens start later."""
    family = ALL[name]
    expected, timesteps = _with_its_own_euler(family)
    other = family.pipe()
    levels, other.scheduler = copy.deepcopy(other.scheduler), FIRST_ORDER[solver]()
    sample_at_levels_of(other.scheduler, levels, 1.0 - 1e-6 if solver == "unipc" else 1.0)
    read_by_ltx = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
    other.scheduler.register_to_config(**{key: levels.config[key] for key in read_by_ltx})
    assert relative(family.run(other, 10), expected) < 1e-6
    assert torch.equal(other.scheduler.timesteps, timesteps)


@functools.cache
def _with_its_own_euler(family: Family) -> tuple[torch.Tensor, torch.Tensor]:
    pipe = family.pipe()
    return family.run(pipe, 10), pipe.scheduler.timesteps


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("solver", MULTISTEP)
def test_lsl_equals_denoisers_exchanged_by_hand(name: str, solver: str) -> None:
    family = ALL[name]
    by_hand, blended = family.pipe(), family.pipe()
    with fb.enable(by_hand, schedule="LLL", adapters=[solver]):
        scheduler = copy.deepcopy(by_hand.scheduler)
    by_hand.scheduler = scheduler
    denoisers = {"L": by_hand.transformer, "S": family.make_small()}
    expected = swapped(family, by_hand, denoisers, "LLLSSSSLL", num_inference_steps=9)
    with fb.enable(blended, family.make_small(), "L:3,S:4,L:2", adapters=[solver]):
        assert torch.equal(family.run(blended, 9), expected)
    assert not torch.equal(family.run(blended, 9), expected)


@pytest.mark.parametrize("solver", MULTISTEP)
def test_solvers_are_of_their_order(solver: str) -> None:
    """On the flow from noise to a Gaussian of deviation .3, whose solution is known: x(0) = .3 x(1)."""

    def error(adapter: str, steps: int) -> float:
        pipe = TEXT.pipe()
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
        with fb.enable(pipe, schedule="LLL", adapters=[adapter]):
            scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps), mu=0.0)
        x = torch.ones(1, 1, 1)
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
            mean = (sigma - (1.0 - sigma) * 0.09) / ((1.0 - sigma) ** 2 * 0.09 + sigma**2)
            x = scheduler.step(mean * x, t, x, return_dict=False)[0]
        return abs(float(x) - 0.3)

    euler = error("flow_euler", 80), error("flow_euler", 160)
    own = error(solver, 80), error(solver, 160)
    assert 1.8 < euler[0] / euler[1] < 2.2  # first order
    assert own[0] < 0.2 * euler[0]
    assert own[1] < 0.1 * euler[1]


@pytest.mark.parametrize("solver", MULTISTEP)
def test_tokens_of_a_weak_condition_have_the_history_of_their_own_steps(solver: str) -> None:
    """The oracle: the same sampler, started with no history at the step where those tokens are first denoised."""
    pipe, steps = CONDITION_SOFT.pipe(), 12
    seen: list[Any] = []
    with fb.enable(pipe, schedule="LLL", adapters=[solver]):
        scheduler = pipe.scheduler
        plain = copy.deepcopy(scheduler)
        step = type(scheduler).step

        def watched(self: Any, output: Any, t: Any, sample: Any, per_token_timesteps: Any, return_dict: bool) -> Any:
            moved = step(self, output, t, sample, per_token_timesteps=per_token_timesteps, return_dict=False)
            seen.append((output, t, sample, per_token_timesteps, moved[0]))
            return moved

        scheduler.__class__ = type(type(scheduler).__name__, (type(scheduler),), {"step": watched})
        CONDITION_SOFT.run(pipe, steps)
    levels = seen[0][3]
    soft = (levels < seen[0][1]) & (levels > 0)  # strength .15: denoised from noise level .85 on
    assert soft.any()
    first = next(i for i, (_, t, _, per_token, _) in enumerate(seen) if bool((per_token >= t - 1e-3)[soft].all()))
    assert 0 < first < steps - 2
    plain.set_timesteps(timesteps=[float(t) for _, t, *_ in seen])
    for output, t, sample, _, moved in seen[first:]:
        expected = plain.step(-output, t, sample, return_dict=False)[0]
        assert torch.equal(moved[soft], expected[soft])
    frozen = seen[0][3] == 0  # strength 1
    assert frozen.any()
    for _, _, sample, _, moved in seen:
        assert torch.equal(moved[frozen], sample[frozen])


def test_history_is_forgotten_at_the_switch_for_every_group_of_tokens() -> None:
    pipe = CONDITION_SOFT.pipe()
    with fb.enable(pipe, CONDITION_SOFT.make_small(), adapters=["dpmpp_2m(reset_solver_history_at_switch=True)"]):
        forgetting = CONDITION_SOFT.run(pipe, 8)
        kept = [started.solver.model_outputs for started in pipe.scheduler.started_tokens]
    with fb.enable(pipe, CONDITION_SOFT.make_small(), adapters=["dpmpp_2m"]):
        assert not torch.equal(CONDITION_SOFT.run(pipe, 8), forgetting)
    assert len(kept) == 2


# -- what is refused -----------------------------------------------------------------------------------------------


def refusal(pipe: Any, *adapters: str) -> str:
    before = dict(vars(pipe))
    with pytest.raises(fb.StackError) as refused:
        fb.enable(pipe, schedule="LLL", adapters=adapters)
    assert dict(vars(pipe)) == before
    return str(refused.value)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_runs_or_is_refused_with_what_works(name: str, solver: str) -> None:
    family = ALL[name]
    pipe = family.pipe()
    if solver in (*MULTISTEP, "flow_euler"):
        with fb.enable(pipe, schedule="LLL", adapters=[solver]):
            assert torch.isfinite(family.run(pipe, 5)).all()
    else:
        message = refusal(pipe, solver)
        assert "takes: 'deis', 'dpmpp_2m', 'dpmpp_3m', 'flow_euler', 'unipc'." in message


def test_the_long_pipeline_refuses_every_solver_and_says_why() -> None:
    plain = TEXT.pipe()
    pipe = LTXI2VLongMultiPromptPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=plain.vae, text_encoder=None, tokenizer=None,
        transformer=plain.transformer,
    )  # fmt: skip
    for solver in SOLVERS:
        assert "leaves out the last of its sampler's timesteps" in refusal(pipe, solver)


def test_a_shift_that_would_part_sigmas_from_timesteps_is_refused() -> None:
    assert "shift=3 moves the sigmas away" in refusal(FAMILIES["ltx-condition"].pipe(), "dpmpp_2m")
    assert "would move sigmas away from the timesteps" in refusal(CONDITION.pipe(), "dpmpp_2m(flow_shift=3.0)")


def test_ltx2_refuses_to_forget_the_history_of_one_of_its_two_samplers() -> None:
    message = refusal(LTX2.pipe(), "dpmpp_2m(reset_solver_history_at_switch=True)")
    assert "steps a copy of its sampler too" in message


def test_timesteps_that_end_at_zero_are_refused_by_name() -> None:
    pipe = CONDITION.pipe()
    blend = fb.enable(pipe, schedule="LLL", adapters=["dpmpp_2m"])
    with blend, pytest.raises(fb.StackError, match="Leave the 0 out of timesteps="):
        CONDITION.run(pipe, 3, timesteps=[1000, 500, 0])


def test_explicit_sigmas_reach_the_condition_pipeline() -> None:
    levels = (1.0, 0.9, 0.5, 0.2)
    pipe = CONDITION.pipe()
    for solver in ("flow_euler", "unipc"):
        with fb.enable(pipe, schedule="LLL", adapters=[f"{solver}(sigmas={levels})"]) as blend:
            CONDITION.run(pipe, 4)
            assert [call.step.sigma for call in blend.trace.last.calls] == pytest.approx(levels, abs=1e-5)


def test_a_shift_reaches_ltx_whose_shift_does_not_follow_from_the_size() -> None:
    plain, blended = TEXT.pipe(), TEXT.pipe()
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=4.0)
    blended.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    TEXT.run(plain, 6)
    with fb.enable(blended, schedule="LLL", adapters=["dpmpp_2m(flow_shift=4.0)"]):
        TEXT.run(blended, 6)
        assert torch.equal(blended.scheduler.sigmas, plain.scheduler.sigmas)
