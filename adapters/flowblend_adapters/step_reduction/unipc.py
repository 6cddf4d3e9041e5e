"""UniPC (Zhao et al., 2023, arXiv 2302.04867): a predictor-corrector of order 2, the sampler of Wan 2.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins.types import Keywords

from .multistep_solver import MultistepSolver, flow_settings


@dataclass(frozen=True, kw_only=True)
class UniPC(MultistepSolver):
    """Sample with the multistep solver UniPC.

    The scheduler is diffusers' ``UniPCMultistepScheduler``.
    """

    scheduler_name: ClassVar[str] = "UniPCMultistepScheduler"
    name: ClassVar[str] = "unipc"
    page: ClassVar[str | None] = "docs/solvers/solvers.md"
    suggested: ClassVar[tuple[str, ...]] = ("unipc(num_inference_steps=16)", "unipc(num_inference_steps=10)")
    highest_level: ClassVar[float | None] = (
        1.0 - 1e-6
    )  # its corrector divides by log-SNRs; diffusers lowers the level so too

    def settings(self, is_flow: bool, flow_shift: float) -> Keywords:
        return flow_settings(is_flow, flow_shift)
