"""Advantage of computed stacks over single techniques at equal fidelity, from measured points only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .race import Cost, Point
from .techniques import COMPUTED, is_single

USEFUL_DB = (20, 40)


@dataclass(frozen=True)
class Advantage:
    """A single technique's operating point, and the fastest computed stack that is at least as faithful.

    ``ratio`` is the computed stack's speed over the technique's; ``None`` where no computed stack is that faithful.
    """

    technique: str
    point: Point
    computed: Point | None

    @property
    def ratio(self) -> float | None:
        return None if self.computed is None else self.computed.speedup / self.point.speedup


@dataclass(frozen=True)
class Level:
    """The cheapest single technique and the cheapest computed stack at or over one PSNR, by time or FLOPs."""

    psnr_db: float
    technique: str
    single: Point
    computed: Point
    cost: Cost

    @property
    def ratio(self) -> float:
        return self.computed.gain(self.cost) / self.single.gain(self.cost)


def cheapest(points: Sequence[Point], min_psnr_db: float, cost: Cost = "time") -> Point | None:
    """Cheapest point at or over a PSNR."""
    return max((one for one in points if one.psnr_db >= min_psnr_db), key=lambda one: one.gain(cost), default=None)


def advantages(measured: Mapping[str, Sequence[Point]]) -> list[Advantage]:
    """Advantage at every operating point of every single technique."""
    return [
        Advantage(name, point, cheapest(measured[COMPUTED], point.psnr_db))
        for name, points in measured.items()
        if is_single(name)
        for point in points
    ]


def levels(measured: Mapping[str, Sequence[Point]], cost: Cost = "time") -> list[Level]:
    """Advantage at every whole decibel of the useful range that both sides reach."""
    found = []
    for level in range(USEFUL_DB[0], USEFUL_DB[1] + 1):
        singles = [
            (point.gain(cost), name, point)
            for name, points in measured.items()
            if is_single(name) and (point := cheapest(points, level, cost)) is not None
        ]
        computed = cheapest(measured[COMPUTED], level, cost)
        if singles and computed is not None:
            _, name, best = max(singles, key=lambda one: one[0])
            found.append(Level(level, name, best, computed, cost))
    return found


def usual_ratio(found: Sequence[Level]) -> float:
    """The median over the levels. Raises ``ValueError`` where there are none."""
    if not found:
        raise ValueError("no computed stack and no single technique reach the useful range together")
    return statistics.median(level.ratio for level in found)
