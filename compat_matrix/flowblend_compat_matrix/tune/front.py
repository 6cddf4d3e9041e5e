"""The Pareto front of speed and fidelity, and the choice from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flowblend_plugins.errors import FlowBlendError, UsageError

from .race import Cost, Point


@dataclass(frozen=True)
class Budget:
    """Fidelity that a chosen stack must keep.

    Attributes:
        min_psnr_db: PSNR to large-only; ``None`` for any.
        min_alignment: prompt alignment as a fraction of large-only's; ``None`` for any.
    """

    min_psnr_db: float | None = None
    min_alignment: float | None = None

    def __post_init__(self) -> None:
        if self.min_psnr_db is None and self.min_alignment is None:
            raise UsageError("tune needs a fidelity budget: give --min-psnr, --min-alignment, or both.")

    def is_kept_by(self, point: Point, large: Point) -> bool:
        if self.min_psnr_db is not None and point.psnr_db < self.min_psnr_db:
            return False
        if self.min_alignment is None:
            return True
        if math.isnan(point.alignment):
            raise UsageError("--min-alignment: nobody judges the prompts of this pair. Use --min-psnr.")
        return point.alignment >= self.min_alignment * large.alignment

    def __str__(self) -> str:
        parts = []
        if self.min_psnr_db is not None:
            parts.append(f"{self.min_psnr_db:g} dB PSNR")
        if self.min_alignment is not None:
            parts.append(f"{self.min_alignment:.0%} of large-only's prompt alignment")
        return " and ".join(parts)


def pareto_front(points: Iterable[Point], cost: Cost = "time") -> list[Point]:
    """Points that no other one beats in cost and PSNR at once, the costliest first."""
    front: list[Point] = []
    best = -math.inf
    for point in sorted(points, key=lambda one: (-one.gain(cost), -one.psnr_db)):
        if point.psnr_db > best:
            front.append(point)
            best = point.psnr_db
    return front[::-1]


def best_fronts(points: Iterable[Point], most: int, cost: Cost = "time") -> list[Point]:
    """The Pareto front, then the front of what is left, and so on: so many points, the last front's evenly over it."""
    left, found = list(points), list[Point]()
    while left and len(found) < most:
        front = pareto_front(left, cost)
        left = [one for one in left if one not in front]
        room = most - len(found)
        if len(front) > room:
            front = [front[round(place * (len(front) - 1) / max(1, room - 1))] for place in range(room)]
        found += front
    return found


def choose(points: Sequence[Point], large: Point, budget: Budget, cost: Cost = "time") -> Point:
    """The cheapest point within the budget.

    Raises:
        FlowBlendError: there is none; says what came nearest.
    """
    kept = [point for point in points if budget.is_kept_by(point, large)]
    if kept:
        return max(kept, key=lambda point: point.gain(cost))
    if not points:
        raise FlowBlendError("no stack could be measured: every one that was tried is refused on this pair.")
    best = max(points, key=lambda point: point.psnr_db)
    raise FlowBlendError(
        f"no stack that was tried keeps {budget}. The most faithful one is {best.configuration.text}: "
        f"{best.psnr_db:.1f} dB at {best.speedup:.2f} times the speed. Lower the budget, or search longer: --trials."
    )
