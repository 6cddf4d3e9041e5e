"""DPM-Solver++(2M) (Lu et al., 2022, arXiv 2211.01095): the multistep solver of order 2 on the data prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .solver import Solver


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Solver):
    """Sample with diffusers' ``DPMSolverMultistepScheduler`` as DPM++ 2M."""

    name: ClassVar[str] = "dpmpp_2m"

    @classmethod
    def scheduler_class(cls) -> type:
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler

    def settings(self, is_flow: bool, flow_shift: float) -> dict[str, Any]:
        settings: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
        if is_flow:
            settings |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": flow_shift}
        return settings
