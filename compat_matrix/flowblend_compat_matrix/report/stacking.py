"""Does a stack deliver what its parts promise: observed speed-up against the product of the parts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..results.matrix_results import CellResult
from .charts import MARGINS, SQUARE_HEIGHT, WIDTH, Chart, Point, Tick, ratio_ticks, ratio_to_x, ratio_to_y
from .figures import figure, times


@dataclass
class StackingChart(Chart):
    """Points above ``diagonal`` (SVG's polyline) are faster than the product of what schedule and stack give alone."""

    points: list[Point] = field(default_factory=list)
    diagonal: str = ""
    summary: str = ""


def stacking_chart(cells: Sequence[tuple[int, CellResult]]) -> StackingChart | None:
    """The chart of one pair's cells, each with its number on the page; ``None`` where no efficiency was measured."""
    known: list[tuple[int, CellResult, float, float]] = []
    for number, cell in cells:
        if cell.stacking_efficiency and cell.speedup_over_large is not None and cell.observed != "broken":
            observed = cell.speedup_over_large
            known.append((number, cell, observed / cell.stacking_efficiency, observed))
    if not known:
        return None
    values = [value for _, _, *both in known for value in both] + [1.0]
    at, low, high = ratio_ticks(min(values), max(values))
    top, bottom = MARGINS.top, SQUARE_HEIGHT - MARGINS.bottom
    chart = StackingChart(
        title="Stacking efficiency",
        x_label="product of the parts: speed-up of the schedule alone × of the stack alone",
        y_label="observed speed-up",
        x_ticks=[Tick(ratio_to_x(tick, low, high), f"{tick:g}×") for tick in at],
        y_ticks=[Tick(ratio_to_y(tick, low, high, top, bottom), f"{tick:g}×") for tick in at],
        height=SQUARE_HEIGHT,
        summary=_summary([cell.stacking_efficiency or 0.0 for _, cell, _, _ in known]),
    )
    chart.diagonal = f"{chart.left},{bottom} {WIDTH - MARGINS.right},{top}"
    for number, cell, expected, observed in known:
        x, y = ratio_to_x(expected, low, high), ratio_to_y(observed, low, high, top, bottom)
        title = (
            f"{cell.id}: {times(observed)} observed, {times(expected)} from the parts, efficiency "
            f"{figure(cell.stacking_efficiency)}"
        )
        chart.points.append(Point("", cell.observed or "", title, x, y, x, x, cell=number))
    return chart


def _summary(efficiencies: Sequence[float]) -> str:
    if len(efficiencies) == 1:
        return f"The one stack reaches {efficiencies[0]:.2f} of the product of its parts."
    return (
        f"The median of {len(efficiencies)} stacks reaches {statistics.median(efficiencies):.2f} of the product of its "
        f"parts; the least {min(efficiencies):.2f}, the most {max(efficiencies):.2f}."
    )
