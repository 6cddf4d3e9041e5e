"""Heun's method on the flow-matching ODE (Karras et al., 2022, arXiv 2206.00364, algorithm 1, without churn).

Every step but the last calls the denoiser twice, at its start and at its end: N steps are 2N-1 timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins.types import Keywords

from .solver import Solver


@dataclass(frozen=True, kw_only=True)
class FlowHeun(Solver):
    """Sample with Heun's method, two calls at a step.

    Sample with Heun's method: diffusers' ``FlowMatchHeunDiscreteScheduler``.
    """

    scheduler_name: ClassVar[str] = "FlowMatchHeunDiscreteScheduler"
    name: ClassVar[str] = "flow_heun"
    page: ClassVar[str | None] = "docs/solvers/solvers.md"
    suggested: ClassVar[tuple[str, ...]] = ("flow_heun(num_inference_steps=10)", "flow_heun(num_inference_steps=6)")

    def settings(self, is_flow: bool, flow_shift: float) -> Keywords:
        return {"shift": flow_shift}

    def count_timesteps(self, num_inference_steps: int) -> int:
        return 2 * num_inference_steps - 1
