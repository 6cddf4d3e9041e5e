"""The solver adapters against diffusers used by hand: schedulers built here from nothing, not from a config."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

import flowblend_plugins as fb
from flowblend_adapters.step_reduction.unipc import UniPC
from flowblend_plugins.stack import timestep_arguments
from flowblend_plugins.testing import (
    AdapterContract,
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)


def unipc(shift: float) -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def flow_euler(shift: float) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def dpmpp_2m(shift: float) -> Any:
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


NO_STEPS = MappingProxyType({"num_inference_steps": None})


class SolverContract(AdapterContract):
    call = NO_STEPS
    make_scheduler: Callable[[float], Any]

    def by_hand(self, pipe: Any) -> torch.Tensor:
        pipe.scheduler = type(self).make_scheduler(5.0)
        return generate(pipe, num_inference_steps=6)


class TestUniPC(SolverContract):
    spec = "unipc(num_inference_steps=6, flow_shift=5.0)"
    wrong_specs = ("unipc(num_inference_steps=0)", "unipc(num_inference_steps=2.5)", "unipc(order=3)")
    make_scheduler = staticmethod(unipc)


class TestFlowEuler(SolverContract):
    spec = "flow_euler(num_inference_steps=6, flow_shift=5.0)"
    wrong_specs = ("flow_euler(flow_shift=0)", "flow_euler(flow_shift='3')", "flow_euler(num_inference_steps=True)")
    make_scheduler = staticmethod(flow_euler)


class TestDPMpp2M(SolverContract):
    spec = "dpmpp_2m(num_inference_steps=6, flow_shift=5.0)"
    wrong_specs = ("dpmpp_2m(flow_shift=-1.0)", "dpmpp_2m(flow_shift=1e999)", "dpmpp_2m(shift=3.0)")
    make_scheduler = staticmethod(dpmpp_2m)


class TestUniPCOnLTX(AdapterContract):
    spec = "unipc(num_inference_steps=6)"
    wrong_specs = ("unipc(steps=6)",)
    call = NO_STEPS
    make_pipeline = staticmethod(tiny_ltx_pipeline)
    make_small = staticmethod(tiny_ltx_denoiser)

    def by_hand(self, pipe: Any) -> torch.Tensor:
        pipe.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True
        )
        return generate(pipe, num_inference_steps=6)


SOLVERS = {"unipc": unipc, "flow_euler": flow_euler, "dpmpp_2m": dpmpp_2m}


@pytest.mark.parametrize("new", SOLVERS)
@pytest.mark.parametrize("old", SOLVERS)
def test_every_solver_after_every_other_keeps_the_shift(old: str, new: str) -> None:
    """With no options, the pipeline's own shift is kept, whatever its scheduler calls it."""
    by_hand, blended = tiny_wan_pipeline(), tiny_wan_pipeline()
    by_hand.scheduler, blended.scheduler = SOLVERS[new](4.0), SOLVERS[old](4.0)
    with fb.enable(blended, schedule="LLL", adapters=[new]):
        assert torch.equal(generate(blended, 5), generate(by_hand, 5))


@pytest.mark.parametrize("solver", SOLVERS)
def test_under_lsl_a_solver_equals_a_pipeline_that_had_it_all_along(solver: str) -> None:
    by_hand, blended = tiny_wan_pipeline(), tiny_wan_pipeline()
    by_hand.scheduler = SOLVERS[solver](3.0)
    with (
        fb.enable(by_hand, tiny_wan_denoiser(), "LSL"),
        fb.enable(blended, tiny_wan_denoiser(), "LSL", adapters=[solver]),
    ):
        expected = generate(by_hand, 10)
        assert torch.equal(generate(blended, 10), expected)
    assert not torch.equal(generate(blended, 10), expected)


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


def test_ltx_refuses_dpmpp_2m_before_anything_runs_and_names_what_it_takes() -> None:
    message = refusal(tiny_ltx_pipeline(), "dpmpp_2m")
    assert "LTXPipeline hands its sampler sigmas, which DPMSolverMultistepScheduler does not take" in message
    assert "'flow_euler', 'unipc'" in message


def test_ltx_really_cannot_take_what_is_refused_and_can_take_the_rest() -> None:
    """The oracle: diffusers itself, asked by running it."""
    for name, make in SOLVERS.items():
        pipe = tiny_ltx_pipeline()
        pipe.scheduler = make(1.0)
        if name == "dpmpp_2m":
            with pytest.raises(ValueError, match="does not support custom"):
                generate(pipe, 2)
        else:
            generate(pipe, 2)


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
    assert timestep_arguments(tiny_wan_pipeline()) == ()
    assert timestep_arguments(tiny_ltx_pipeline()) == ("sigmas", "mu")


def test_two_solvers_on_one_pipeline_are_refused_with_every_other_reason() -> None:
    message = refusal(tiny_ltx_pipeline(), "unipc", "dpmpp_2m(flow_shift=2.0)")
    assert "for 3 reasons" in message
    assert "both decide the sampler" in message
