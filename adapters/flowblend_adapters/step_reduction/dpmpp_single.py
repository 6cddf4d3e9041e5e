"""DPM-Solver++(2S) (Lu et al., 2022, arXiv 2211.01095): the single-step solver of order 2 on the data prediction.

Its steps come in blocks of two, of which the second starts again from where the first did: a history of two steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins.types import Keywords

from .multistep_solver import MultistepSolver, flow_settings


@dataclass(frozen=True, kw_only=True)
class DPMppSingle(MultistepSolver):
    """Sample with the singlestep solver DPM++ 2S.

    The scheduler is diffusers' ``DPMSolverSinglestepScheduler``.
    """

    scheduler_name: ClassVar[str] = "DPMSolverSinglestepScheduler"
    name: ClassVar[str] = "dpmpp_single"
    page: ClassVar[str | None] = "docs/solvers/solvers.md"
    suggested: ClassVar[tuple[str, ...]] = (
        "dpmpp_single(num_inference_steps=20)",
        "dpmpp_single(num_inference_steps=12)",
    )

    def settings(self, is_flow: bool, flow_shift: float) -> Keywords:
        own: Keywords = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
        # With a final sigma of 0 diffusers sets this itself, and warns.
        own["lower_order_final"] = True
        return own | flow_settings(is_flow, flow_shift)
