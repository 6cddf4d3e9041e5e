"""The Euler method on the flow-matching ODE (Esser et al., 2024, arXiv 2403.03206), the sampler of LTX-Video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins.types import Keywords

from .solver import Solver


@dataclass(frozen=True, kw_only=True)
class FlowEuler(Solver):
    """Sample with Euler's method, one call at a step.

    Sample with Euler's method: diffusers' ``FlowMatchEulerDiscreteScheduler``.
    """

    scheduler_name: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"
    name: ClassVar[str] = "flow_euler"
    page: ClassVar[str | None] = "docs/solvers/solvers.md"
    suggested: ClassVar[tuple[str, ...]] = ("flow_euler(num_inference_steps=20)", "flow_euler(num_inference_steps=12)")

    def settings(self, is_flow: bool, flow_shift: float) -> Keywords:
        return {"shift": flow_shift}
