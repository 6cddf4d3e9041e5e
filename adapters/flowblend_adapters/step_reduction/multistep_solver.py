"""Multistep solver adapters, whose history may be forgotten at the switch of denoisers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flowblend_plugins import Adapter
from flowblend_plugins.pipelines.source import read_source
from flowblend_plugins.types import Keywords, Pipeline, Scheduler

from .attached_solver import AttachedSolver, ForgettingSolver
from .solver import Solver


@dataclass(frozen=True, kw_only=True)
class MultistepSolver(Solver):
    """A solver that extrapolates from the outputs of earlier steps.

    Args:
        reset_solver_history_at_switch: forget those outputs when another denoiser enters, so that its first step is of
            first order. Off, the history crosses the switch, as in diffusers' own two-transformer Wan pipeline.
    """

    reset_solver_history_at_switch: bool = False

    def obstacles(self, pipe: Pipeline, registered: Iterable[type[Adapter]] = ()) -> Iterable[tuple[str, str]]:
        yield from super().obstacles(pipe, registered)
        if self.reset_solver_history_at_switch and read_source(pipe).copies_scheduler:
            found = f"{type(pipe).__name__} steps a copy of its sampler too, whose history would not be forgotten"
            yield found, "Leave reset_solver_history_at_switch out."

    def attached(self, scheduler: Scheduler) -> AttachedSolver:
        kind = ForgettingSolver if self.reset_solver_history_at_switch else AttachedSolver
        return kind(self.name, self.num_inference_steps, scheduler)


def flow_settings(is_flow: bool, flow_shift: float) -> Keywords:
    """Settings that tell diffusers' multistep schedulers of flow matching; they were made for diffusion."""
    if not is_flow:
        return {}
    return {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": flow_shift}
