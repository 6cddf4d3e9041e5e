"""What happens to a sampler's history at the switch, and to its last step and its noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DEISMultistepScheduler, SASolverScheduler

import flowblend_plugins as fb
from tests.adapters.step_reduction.solvers_by_hand import FLOW, drawing_from
from tests.exactness.pipelines import FAMILIES

WAN = FAMILIES["wan"]
STEPS, SCHEDULE, LETTERS, SWITCHES = 6, "L:3,S:2,L:1", "LLLSSL", (3, 5)
MULTISTEP = ("unipc", "dpmpp_2m", "dpmpp_3m", "dpmpp_single", "deis", "sa_solver")


def restarted_by_hand(solver: str) -> torch.Tensor:
    """At every switch the pipeline is given a sampler that was never used, set to begin at that step."""
    pipe, generator = WAN.pipe(), torch.Generator().manual_seed(0)
    denoisers = {"L": pipe.transformer, "S": WAN.make_small()}

    def fresh(begin: int) -> Any:
        scheduler = drawing_from(FLOW[solver](3.0), generator)
        if begin:
            scheduler.set_timesteps(STEPS)
            scheduler.set_begin_index(begin)
        return scheduler

    def put_next(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step + 1 < STEPS:
            pipe.transformer = denoisers[LETTERS[step + 1]]
        if step + 1 in SWITCHES:
            pipe.scheduler = fresh(step + 1)
        return tensors

    pipe.scheduler = fresh(0)
    return WAN.run(pipe, STEPS, callback_on_step_end=put_next, generator=generator)


@pytest.mark.parametrize("solver", MULTISTEP)
def test_a_reset_at_the_switch_equals_a_fresh_sampler_there(solver: str) -> None:
    expected = restarted_by_hand(solver)
    pipe = WAN.pipe()
    with fb.enable(pipe, WAN.make_small(), SCHEDULE, adapters=[f"{solver}(reset_solver_history_at_switch=True)"]):
        assert torch.equal(WAN.run(pipe, STEPS), expected)
        assert torch.equal(WAN.run(pipe, STEPS), expected), "the second generation differs"
    with fb.enable(pipe, WAN.make_small(), SCHEDULE, adapters=[solver]):
        assert not torch.equal(WAN.run(pipe, STEPS), expected), "the history made no difference"


@pytest.mark.parametrize("solver", ["unipc", "dpmpp_3m"])
def test_without_a_switch_the_option_changes_nothing(solver: str) -> None:
    first, second = WAN.pipe(), WAN.pipe()
    with fb.enable(first, schedule="LLL", adapters=[solver]):
        expected = WAN.run(first, STEPS)
    with fb.enable(second, schedule="LLL", adapters=[f"{solver}(reset_solver_history_at_switch=True)"]):
        assert torch.equal(WAN.run(second, STEPS), expected)


@pytest.mark.parametrize("solver", ["deis", "sa_solver"])
def test_the_last_step_takes_the_noise_away(solver: str) -> None:
    """A velocity of noise minus data leads exactly to the data, if the sampler goes all the way."""
    pipe = WAN.pipe()
    with fb.enable(pipe, schedule="LLL", adapters=[solver]):
        scheduler = pipe.scheduler
    data, noise = torch.full((1, 4), 2.0), torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    plain_class = {"deis": DEISMultistepScheduler, "sa_solver": SASolverScheduler}[solver]
    plain = plain_class(prediction_type="flow_prediction", use_flow_sigmas=True)
    ends = []
    for one in (scheduler, plain):
        one.set_timesteps(STEPS)
        sample = one.sigmas[0] * noise + (1 - one.sigmas[0]) * data
        for t, sigma in zip(one.timesteps, one.sigmas, strict=False):
            sample = one.step((sample - data) / sigma, t, sample).prev_sample
        ends.append(float((sample - data).abs().max()))
    assert ends[0] < 0.01
    assert ends[1] > 0.1


@pytest.mark.parametrize("batch", [1, 2])
def test_the_noise_of_sa_solver_follows_the_generators_of_the_call(batch: int) -> None:
    pipe = WAN.pipe()
    seeds = [torch.Generator().manual_seed(7 + number) for number in range(batch)]
    again = [torch.Generator().manual_seed(7 + number) for number in range(batch)]
    with fb.enable(pipe, schedule="LLL", adapters=["sa_solver"]):
        torch.manual_seed(1)
        first = WAN.run(pipe, STEPS, batch=batch, generator=seeds)
        torch.manual_seed(2)
        assert torch.equal(WAN.run(pipe, STEPS, batch=batch, generator=again), first)
        assert pipe.scheduler.call_generator is None


def test_a_boundary_by_sigma_gives_both_evaluations_at_a_level_of_heun_to_one_denoiser() -> None:
    pipe = WAN.pipe()
    with fb.enable(pipe, WAN.make_small(), "L>=0.8,S", adapters=["flow_heun(num_inference_steps=4)"]) as blend:
        WAN.run(pipe, num_inference_steps=4)
        calls = blend.trace.last.calls[::2]
    assert [call.step.step_index for call in calls] == list(range(7))
    sigmas = [call.step.sigma for call in calls]
    assert sigmas[1] == sigmas[2]
    assert [call.step.denoiser for call in calls] == ["L" if sigma >= 0.8 else "S" for sigma in sigmas]
