"""The solver adapters against diffusers used by hand, and what they refuse before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

import flowblend_plugins as fb
from flowblend_adapters.step_reduction.unipc import UniPC
from flowblend_plugins.pipelines.source import read_source
from flowblend_plugins.testing import generate, tiny_ltx_pipeline, tiny_wan_pipeline
from tests.adapters.step_reduction.solvers_by_hand import EPSILON, FLOW, drawing_from
from tests.exactness.oracles import swapped
from tests.exactness.pipelines import FAMILIES, STABLE_DIFFUSION

WAN = FAMILIES["wan"]
OTHERS = ("dpmpp_2m", "flow_heun")


@pytest.mark.parametrize("new", FLOW)
@pytest.mark.parametrize("old", OTHERS)
def test_every_solver_after_every_other_keeps_the_shift(old: str, new: str) -> None:
    """With no options, the pipeline's own shift is kept, whatever its scheduler calls it."""
    by_hand, blended = tiny_wan_pipeline(), tiny_wan_pipeline()
    generator = torch.Generator().manual_seed(0)
    by_hand.scheduler, blended.scheduler = drawing_from(FLOW[new](4.0), generator), FLOW[old](4.0)
    with fb.enable(blended, schedule="LLL", adapters=[new]):
        assert torch.equal(generate(blended, 3), generate(by_hand, 3, generator=generator))


@pytest.mark.parametrize("solver", FLOW)
def test_under_lsl_a_solver_equals_denoisers_swapped_by_hand(solver: str) -> None:
    """Heun's 5 steps are 9 timesteps, over which the fractions are counted."""
    letters = "LLLLSSSLL" if solver == "flow_heun" else "LLSSL"
    by_hand, blended, generator = WAN.pipe(), WAN.pipe(), torch.Generator().manual_seed(0)
    by_hand.scheduler = drawing_from(FLOW[solver](3.0), generator)
    denoisers = {"L": by_hand.transformer, "S": WAN.make_small()}
    expected = swapped(WAN, by_hand, denoisers, letters, num_inference_steps=5, generator=generator)
    with fb.enable(blended, WAN.make_small(), "LSL", adapters=[solver]) as blend:
        assert torch.equal(WAN.run(blended, 5), expected)
        assert "".join(call.step.denoiser for call in blend.trace.last.calls[::2]) == letters
        assert [step.denoiser for step in blend.preview(5)[0]] == list(letters)
    assert not torch.equal(WAN.run(blended, 5), expected)


@pytest.mark.parametrize("solver", EPSILON)
def test_on_a_unet_that_predicts_noise(solver: str) -> None:
    """No flow sigmas, the betas of the pipeline's own scheduler, its spacing; and the switch where it belongs."""
    family = STABLE_DIFFUSION
    by_hand, blended = family.pipe(), family.pipe()
    blended.scheduler = DDIMScheduler(clip_sample=False, steps_offset=1, timestep_spacing="leading")
    by_hand.scheduler = EPSILON[solver]()
    denoisers = {"L": by_hand.unet, "S": family.make_small()}
    expected = swapped(family, by_hand, denoisers, "LLSSL", num_inference_steps=5)
    with fb.enable(blended, family.make_small(), "LSL", adapters=[solver]):
        assert not blended.scheduler.config.get("use_flow_sigmas")
        assert torch.equal(family.run(blended, 5), expected)


def test_betas_that_a_scheduler_has_by_default_are_handed_on() -> None:
    """HeunDiscrete's defaults are Stable Diffusion's betas, UniPC's are others."""
    pipe = STABLE_DIFFUSION.pipe()
    pipe.scheduler = HeunDiscreteScheduler()
    with fb.enable(pipe, schedule="LLL", adapters=["unipc"]):
        assert torch.equal(pipe.scheduler.betas, HeunDiscreteScheduler().betas)
    assert not torch.equal(UniPCMultistepScheduler().betas, HeunDiscreteScheduler().betas)


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
def test_a_unet_that_predicts_noise_refuses_flow_solvers_and_names_what_it_takes(name: str) -> None:
    message = refusal(STABLE_DIFFUSION.pipe(), name)
    assert "for flow-matching denoisers" in message
    assert "'deis', 'dpmpp_2m', 'dpmpp_3m', 'dpmpp_single', 'sa_solver', 'unipc'" in message


def test_the_scheduler_object_comes_back_and_the_config_names_the_new_one_meanwhile() -> None:
    pipe = tiny_wan_pipeline()
    scheduler, config = pipe.scheduler, pipe._internal_dict
    with fb.enable(pipe, schedule="LLL", adapters=["flow_euler"]):
        assert pipe.config.scheduler == ("diffusers", "FlowMatchEulerDiscreteScheduler")
    assert pipe.scheduler is scheduler
    assert pipe._internal_dict is config


def test_the_shift_by_resolution_of_ltx_reaches_unipc() -> None:
    """LTX reads base_shift and max_shift off the scheduler's config; UniPC does not have them, yet they must count."""
    pipe = tiny_ltx_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    generate(pipe, 6)
    euler_sigmas = pipe.scheduler.sigmas
    with fb.enable(pipe, schedule="LLL", adapters=["unipc"]):
        generate(pipe, 6)
        assert torch.allclose(pipe.scheduler.sigmas, euler_sigmas, atol=1e-5)
    plain = tiny_ltx_pipeline()
    generate(plain, 6)
    assert not torch.allclose(plain.scheduler.sigmas, euler_sigmas, atol=1e-2)


def test_one_adapter_object_serves_two_pipelines_at_once() -> None:
    adapter = UniPC(num_inference_steps=4)
    first, second = tiny_wan_pipeline(0), tiny_wan_pipeline(5)
    schedulers = first.scheduler, second.scheduler
    outer = fb.enable(first, schedule="LLL", adapters=[adapter])
    with fb.enable(second, schedule="LLL", adapters=[adapter]):
        outer.disable()
        assert second.scheduler is not schedulers[1]
    assert (first.scheduler, second.scheduler) == schedulers


# -- the number of steps -------------------------------------------------------------------------------------------


def test_a_call_that_says_the_same_number_of_steps_is_no_conflict() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, schedule="LLL", adapters=["unipc(num_inference_steps=4)"]) as blend:
        assert torch.equal(generate(pipe, 4), generate(pipe, None))
        assert [len(g.calls) for g in blend.trace.generations] == [8, 8]


@pytest.mark.parametrize(
    ("make", "conflicting", "values"),
    [
        (tiny_wan_pipeline, {"num_inference_steps": 7}, ["num_inference_steps=7", "num_inference_steps=4"]),
        (tiny_ltx_pipeline, {"timesteps": [900, 500]}, ["timesteps=...", "num_inference_steps=4"]),
    ],
)
def test_a_call_that_says_another_number_is_refused(
    make: Callable[[], Any], conflicting: dict[str, Any], values: list[str]
) -> None:
    pipe = make()
    with fb.enable(pipe, schedule="LLL", adapters=["unipc(num_inference_steps=4)"]):
        with pytest.raises(fb.StackError) as refused:
            generate(pipe, **{"num_inference_steps": None, **conflicting})
        generate(pipe, None)
    assert all(value in str(refused.value) for value in values)


# -- what a pipeline cannot take -----------------------------------------------------------------------------------


def refusal(pipe: Any, *adapters: str) -> str:
    before = dict(vars(pipe))
    with pytest.raises(fb.StackError) as refused:
        fb.enable(pipe, schedule="LLL", adapters=adapters)
    assert dict(vars(pipe)) == before
    return str(refused.value)


def test_ltx_refuses_heun_before_anything_runs_and_names_what_it_takes() -> None:
    message = refusal(tiny_ltx_pipeline(), "flow_heun")
    assert "LTXPipeline hands its sampler sigmas and mu, which FlowMatchHeunDiscreteScheduler does not take" in message
    assert "Solvers that LTXPipeline takes: 'deis', 'dpmpp_2m', 'dpmpp_3m', 'flow_euler', 'unipc'." in message


def test_ltx_really_cannot_take_what_is_refused() -> None:
    """The oracle: diffusers itself, asked by running it. What is not refused is tested in tests/ltx."""
    for name, make in FLOW.items():
        pipe = tiny_ltx_pipeline()
        pipe.scheduler = make(1.0)
        if name in ("unipc", "flow_euler"):
            generate(pipe, 2)
            continue
        with pytest.raises(ValueError, match="does not support custom"):
            generate(pipe, 2)
        if name in ("flow_heun", "sa_solver", "dpmpp_single"):
            assert "hands its sampler" in refusal(tiny_ltx_pipeline(), name)


@pytest.mark.parametrize("name", ["dpmpp_2m", "flow_heun", "sa_solver"])
def test_a_list_of_sigmas_is_refused_where_the_sampler_takes_none(name: str) -> None:
    message = refusal(tiny_wan_pipeline(), f"{name}(sigmas=(0.9, 0.5))")
    assert "takes no list of noise levels" in message
    assert "Solvers that take one on WanPipeline: 'flow_euler', 'unipc'." in message


def test_a_list_of_sigmas_is_refused_on_a_denoiser_that_is_no_flow() -> None:
    assert "no flow-matching one" in refusal(STABLE_DIFFUSION.pipe(), "unipc(sigmas=(0.9, 0.5))")


def test_timesteps_selected_on_another_denoiser_are_refused() -> None:
    message = refusal(tiny_wan_pipeline(), "unipc(timesteps='reference', num_inference_steps=8)")
    assert "selected on another denoiser" in message
    assert "attention_head_dim=" in message


def test_the_settings_of_another_solver_are_not_inherited() -> None:
    pipe = tiny_wan_pipeline()
    pipe.scheduler = FLOW["dpmpp_3m"](3.0)
    with fb.enable(pipe, schedule="LLL", adapters=["unipc"]):
        assert (pipe.scheduler.config.solver_order, pipe.scheduler.config.solver_type) == (2, "bh2")


def test_flow_shift_is_refused_where_it_would_do_nothing() -> None:
    assert "use_dynamic_shifting" in refusal(tiny_ltx_pipeline(), "unipc(flow_shift=2.0)")


def test_a_noise_schedule_that_a_solver_does_not_have_is_refused() -> None:
    pipe = tiny_wan_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)  # as Mochi samples
    assert "invert_sigmas=True, which UniPCMultistepScheduler does not have" in refusal(pipe, "unipc")
    pipe.scheduler = CogVideoXDDIMScheduler(snr_shift_scale=3.0)  # as CogVideoX 2B samples
    assert "snr_shift_scale=3.0" in refusal(pipe, "unipc")


def test_flow_euler_is_refused_on_a_denoiser_that_is_no_flow() -> None:
    pipe = tiny_wan_pipeline()
    pipe.scheduler = DPMSolverMultistepScheduler()
    message = refusal(pipe, "flow_euler(flow_shift=2.0)")
    assert "for flow-matching denoisers" in message
    assert "flow_shift=2, but this denoiser is no flow-matching one" in message


def test_a_denoiser_that_is_no_flow_keeps_its_prediction_type() -> None:
    by_hand, blended = tiny_wan_pipeline(), tiny_wan_pipeline()
    by_hand.scheduler = DPMSolverMultistepScheduler(prediction_type="v_prediction")
    blended.scheduler = UniPCMultistepScheduler(prediction_type="v_prediction")
    with fb.enable(blended, schedule="LLL", adapters=["dpmpp_2m"]):
        assert torch.equal(generate(blended, 4), generate(by_hand, 4))


def test_what_pipelines_hand_to_their_sampler_is_read_off_their_source() -> None:
    assert read_source(tiny_wan_pipeline()).timestep_arguments == ()
    assert read_source(tiny_ltx_pipeline()).timestep_arguments == ("sigmas", "mu")


def test_two_solvers_on_one_pipeline_are_refused_with_every_other_reason() -> None:
    message = refusal(tiny_ltx_pipeline(), "unipc", "dpmpp_single(flow_shift=2.0)")
    assert "for 3 reasons" in message
    assert "both decide the sampler" in message
