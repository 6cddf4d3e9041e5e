"""The contract of adapters, for every solver, against diffusers used by hand."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from flowblend_plugins.testing import AdapterContract, generate, tiny_ltx_denoiser, tiny_ltx_pipeline
from tests.adapters.step_reduction.solvers_by_hand import FLOW, drawing_from

NO_STEPS = MappingProxyType({"num_inference_steps": None})


class SolverContract(AdapterContract):
    call = NO_STEPS

    def by_hand(self, pipe: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        pipe.scheduler = drawing_from(FLOW[self.adapter(self.spec).name](5.0), generator)
        return generate(pipe, num_inference_steps=4, generator=generator)


class TestUniPC(SolverContract):
    spec = "unipc(num_inference_steps=4, flow_shift=5.0)"
    wrong_specs = ("unipc(num_inference_steps=0)", "unipc(num_inference_steps=2.5)", "unipc(order=3)")


class TestDPMpp2M(SolverContract):
    spec = "dpmpp_2m(num_inference_steps=4, flow_shift=5.0)"
    wrong_specs = ("dpmpp_2m(flow_shift=-1.0)", "dpmpp_2m(flow_shift=1e999)", "dpmpp_2m(shift=3.0)")


class TestDPMpp3M(SolverContract):
    spec = "dpmpp_3m(num_inference_steps=4, flow_shift=5.0)"
    wrong_specs = ("dpmpp_3m(reset_solver_history_at_switch=1)",)


class TestDPMppSingle(SolverContract):
    spec = "dpmpp_single(num_inference_steps=4, flow_shift=5.0)"
    wrong_specs = ("dpmpp_single(solver_order=3)",)


class TestFlowEuler(SolverContract):
    spec = "flow_euler(num_inference_steps=4, flow_shift=5.0)"
    wrong_specs = (
        "flow_euler(flow_shift=0)",
        "flow_euler(flow_shift='3')",
        "flow_euler(num_inference_steps=True)",
        "flow_euler(reset_solver_history_at_switch=True)",  # it has none
    )


class TestFlowHeun(SolverContract):
    spec = "flow_heun(num_inference_steps=4, flow_shift=5.0)"
    wrong_specs = ("flow_heun(reset_solver_history_at_switch=True)",)


class TestDEIS(SolverContract):
    spec = "deis(num_inference_steps=4, flow_shift=5.0)"
    wrong_specs = ("deis(algorithm_type='deis')",)


class TestSASolver(SolverContract):
    spec = "sa_solver(num_inference_steps=4, flow_shift=5.0)"
    wrong_specs = ("sa_solver(tau=0.5)",)


SIGMAS = (0.98, 0.9, 0.61, 0.3, 0.05)


class TestExplicitSigmas(AdapterContract):
    spec = f"unipc(sigmas={SIGMAS})"
    wrong_specs = (
        "unipc(sigmas=())",
        "unipc(sigmas=(0.5, 0.9))",
        "unipc(sigmas=(0.9, 0.0))",
        "unipc(sigmas=(1.5, 0.5))",
        "unipc(sigmas=(0.9, 0.5), num_inference_steps=3)",
        "unipc(sigmas=(0.9, 0.5), flow_shift=3.0)",
        "unipc(sigmas=(0.9, 0.5), timesteps='reference')",
        "unipc(timesteps='reference')",
        "unipc(timesteps='reference', num_inference_steps=23)",
        "unipc(timesteps='nowhere.json', num_inference_steps=8)",
    )
    call = NO_STEPS

    def by_hand(self, pipe: Any) -> torch.Tensor:
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        plain = scheduler.set_timesteps
        scheduler.set_timesteps = lambda steps, device=None: plain(sigmas=np.array(SIGMAS))  # type: ignore[method-assign]
        pipe.scheduler = scheduler
        return generate(pipe, num_inference_steps=len(SIGMAS))


class TestUniPCOnLTX(AdapterContract):
    spec = "unipc(num_inference_steps=4)"
    wrong_specs = ("unipc(steps=4)",)
    call = NO_STEPS
    make_pipeline = staticmethod(tiny_ltx_pipeline)
    make_small = staticmethod(tiny_ltx_denoiser)

    def by_hand(self, pipe: Any) -> torch.Tensor:
        pipe.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True
        )
        return generate(pipe, num_inference_steps=4)


class TestExplicitSigmasOnLTX(AdapterContract):
    """LTX makes sigmas of its own and shifts them by the size of the video; neither may happen to these."""

    spec = f"flow_euler(sigmas={SIGMAS})"
    wrong_specs = ("flow_euler(sigmas=[0.9, 0.5])",)
    call = NO_STEPS
    make_pipeline = staticmethod(tiny_ltx_pipeline)
    make_small = staticmethod(tiny_ltx_denoiser)

    def by_hand(self, pipe: Any) -> torch.Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler()
        plain = scheduler.set_timesteps

        def set_timesteps(
            num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None
        ) -> None:
            plain(sigmas=list(SIGMAS))

        scheduler.set_timesteps = set_timesteps  # type: ignore[method-assign]
        pipe.scheduler = scheduler
        return generate(pipe, num_inference_steps=len(SIGMAS))
