"""SA-Solver (Xue et al., 2023, arXiv 2309.05019): a stochastic Adams predictor-corrector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins.types import Keywords, Scheduler

from .attached_solver import AttachedSolver, ForgettingStochasticSolver, StochasticSolver
from .multistep_solver import MultistepSolver, flow_settings
from .noise_schedule import is_flow
from .own_scheduler import finish_flow, take_noise_from_call


@dataclass(frozen=True, kw_only=True)
class SASolver(MultistepSolver):
    """Sample with the stochastic solver SA-Solver.

    Sample with diffusers' ``SASolverScheduler``, ending at the last noise level of training.

    It adds noise in the middle of the trajectory, drawn from the generator of the call.
    """

    scheduler_name: ClassVar[str] = "SASolverScheduler"
    name: ClassVar[str] = "sa_solver"
    page: ClassVar[str | None] = "docs/solvers/solvers.md"
    suggested: ClassVar[tuple[str, ...]] = ("sa_solver(num_inference_steps=20)", "sa_solver(num_inference_steps=12)")

    def settings(self, is_flow: bool, flow_shift: float) -> Keywords:
        return {"algorithm_type": "data_prediction"} | flow_settings(is_flow, flow_shift)

    def build(self, scheduler: Scheduler) -> Scheduler:
        new = super().build(scheduler)
        if is_flow(new):
            finish_flow(new)
        take_noise_from_call(new)
        return new

    def attached(self, scheduler: Scheduler) -> AttachedSolver:
        kind = ForgettingStochasticSolver if self.reset_solver_history_at_switch else StochasticSolver
        return kind(self.name, self.num_inference_steps, scheduler)
