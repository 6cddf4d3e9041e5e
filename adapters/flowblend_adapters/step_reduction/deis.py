"""DEIS (Zhang and Chen, 2022, arXiv 2204.13902): the exponential integrator with multistep polynomials, of order 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins.types import Keywords, Scheduler

from .multistep_solver import MultistepSolver, flow_settings
from .noise_schedule import is_flow
from .own_scheduler import finish_flow, step_ends_as_euler


@dataclass(frozen=True, kw_only=True)
class DEIS(MultistepSolver):
    """Sample with the exponential integrator DEIS.

    Sample with diffusers' ``DEISMultistepScheduler``, ending at the last noise level of training.
    """

    scheduler_name: ClassVar[str] = "DEISMultistepScheduler"
    name: ClassVar[str] = "deis"
    page: ClassVar[str | None] = "docs/solvers/solvers.md"
    suggested: ClassVar[tuple[str, ...]] = ("deis(num_inference_steps=20)", "deis(num_inference_steps=12)")
    highest_level: ClassVar[float | None] = 1.0

    def settings(self, is_flow: bool, flow_shift: float) -> Keywords:
        own = {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho"}
        return own | flow_settings(is_flow, flow_shift)

    def build(self, scheduler: Scheduler) -> Scheduler:
        new = super().build(scheduler)
        if is_flow(new):
            finish_flow(new)
        return new

    def step_between(self, new: Scheduler, levels: Scheduler) -> None:
        step_ends_as_euler(new)
        super().step_between(new, levels)
