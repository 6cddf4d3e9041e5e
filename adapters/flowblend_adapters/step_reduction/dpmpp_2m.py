"""DPM-Solver++(2M) (Lu et al., 2022, arXiv 2211.01095): the multistep solver of order 2 on the data prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins.types import Keywords

from .multistep_solver import MultistepSolver, flow_settings


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(MultistepSolver):
    """Sample with the multistep solver DPM++ 2M.

    The scheduler is diffusers' ``DPMSolverMultistepScheduler``.
    """

    scheduler_name: ClassVar[str] = "DPMSolverMultistepScheduler"
    name: ClassVar[str] = "dpmpp_2m"
    page: ClassVar[str | None] = "docs/solvers/solvers.md"
    suggested: ClassVar[tuple[str, ...]] = ("dpmpp_2m(num_inference_steps=20)", "dpmpp_2m(num_inference_steps=12)")
    highest_level: ClassVar[float | None] = 1.0

    def settings(self, is_flow: bool, flow_shift: float) -> Keywords:
        own = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
        return own | flow_settings(is_flow, flow_shift)
