"""The samplers of few-step denoisers, built as the solver adapters build theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from flowblend_plugins.types import Keywords, Scheduler

from ..step_reduction.attached_solver import AttachedSolver, StochasticSolver
from ..step_reduction.flow_euler import FlowEuler
from ..step_reduction.own_scheduler import take_noise_from_call
from ..step_reduction.solver import Solver
from ..step_reduction.unipc import UniPC

Sampler = Literal["euler", "lcm", "unipc"]


@dataclass(frozen=True, kw_only=True)
class FlowLCM(Solver):
    """diffusers' ``FlowMatchLCMScheduler``: predict the clean video, then add fresh noise for the next step.

    The noise is drawn from the generator of the call, so that a seed gives the same video again.
    """

    scheduler_name: ClassVar[str] = "FlowMatchLCMScheduler"

    def settings(self, is_flow: bool, flow_shift: float) -> Keywords:
        return {"shift": flow_shift}

    def build(self, scheduler: Scheduler) -> Scheduler:
        new = super().build(scheduler)
        take_noise_from_call(new)
        return new

    def attached(self, scheduler: Scheduler) -> AttachedSolver:
        return StochasticSolver(self.name, self.num_inference_steps, scheduler)


SAMPLERS: dict[str, type[Solver]] = {"euler": FlowEuler, "lcm": FlowLCM, "unipc": UniPC}
