"""UniPC (Zhao et al., 2023, arXiv 2302.04867): a predictor-corrector of order 2, the sampler of Wan 2.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .solver import Solver


@dataclass(frozen=True, kw_only=True)
class UniPC(Solver):
    """Sample with diffusers' ``UniPCMultistepScheduler``."""

    name: ClassVar[str] = "unipc"

    @classmethod
    def scheduler_class(cls) -> type:
        from diffusers import UniPCMultistepScheduler

        return UniPCMultistepScheduler

    def settings(self, is_flow: bool, flow_shift: float) -> dict[str, Any]:
        if not is_flow:
            return {}
        return {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": flow_shift}
