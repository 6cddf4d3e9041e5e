"""Contents of the report, worked out before the template sees them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..results.matrix_results import CellResult, Matrix, PairRecord
from .caveats import caveats
from .charts import LineChart, Marked, Scatter, line_chart, scatter
from .details import adapter_names
from .figures import figure, times
from .grid import Grid, make_grid
from .headline import Headline, headline
from .media import on_front, speed_and_fidelity
from .stacking import StackingChart, stacking_chart

VERDICT_MARKS = {
    "pass": "✓", "degraded": "≈", "undecided": "?", "inert": "○", "refused": "⊘", "broken": "✕", "skipped": "…",
}  # fmt: skip
LEGEND = {mark: "inert (no effect)" if name == "inert" else name for name, mark in VERDICT_MARKS.items()}
"""Words for the marks, as legends say them."""

DECLARED_MARKS = {"composes": "+", "composes_with_reset": "↻", "inert": "○", "refused": "⊘"}
_BRANCHES = {"cond": "with the prompt", "uncond": "without it", "guided": "after guidance"}


class FrontRow(NamedTuple):
    """A cell on the front of speed and fidelity, as the chart's key names it."""

    label: str
    number: int
    cell: CellResult


class AdapterGroup(NamedTuple):
    """Adapters of one family, for the filter; ``""`` where the results do not say which it is."""

    family: str
    names: list[str]


@dataclass(frozen=True)
class PairView:
    """Everything on the page about one pair; cells are named by their number in the whole matrix."""

    record: PairRecord
    headline: Headline
    grid: Grid
    numbers: dict[str, int]
    counts: dict[str, int]
    num_surprises: int
    adapters: list[AdapterGroup]
    scatter: Scatter | None
    front: list[FrontRow]
    stacking: StackingChart | None
    divergence: list[LineChart]
    caveats: list[str]

    @property
    def num_cells(self) -> int:
        return len(self.numbers)


def pair_views(matrix: Matrix) -> list[PairView]:
    """Work out the whole page; pairs that have no cell yet are left out."""
    views = []
    for pair in matrix.run.pairs:
        cells = [(number, cell) for number, cell in enumerate(matrix.cells) if cell.pair == pair.name]
        if cells:
            views.append(_pair_view(matrix, pair, cells))
    return views


def _pair_view(matrix: Matrix, pair: PairRecord, cells: list[tuple[int, CellResult]]) -> PairView:
    results = [cell for _, cell in cells]
    counted = Counter(cell.observed or "" for cell in results)
    numbers = {cell.id: number for number, cell in cells}
    best = on_front(results)
    # Schedules have short names; a stack's would cover the chart, so those on the front are numbered.
    labels = {cell.id: str(place) for place, cell in enumerate((one for one in best if one.adapters), start=1)}
    labels |= {cell.id: cell.schedule for cell in results if not cell.adapters}
    return PairView(
        record=pair,
        headline=headline(results),
        grid=make_grid(results),
        numbers=numbers,
        counts={name: counted[name] for name in VERDICT_MARKS if counted[name]},
        num_surprises=sum(cell.surprise is not None for cell in results),
        adapters=_adapters(results, matrix.run.families),
        scatter=_scatter(cells, labels, matrix.run.budget.get("min_psnr_db")),
        front=[FrontRow(labels[cell.id] if cell.adapters else "", numbers[cell.id], cell) for cell in best],
        stacking=stacking_chart(cells),
        divergence=_divergence(pair),
        caveats=caveats(matrix, pair),
    )


def _adapters(cells: Sequence[CellResult], families: dict[str, str]) -> list[AdapterGroup]:
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for cell in cells for name in adapter_names(cell)):
        found.setdefault(families.get(name, ""), []).append(name)
    return [AdapterGroup(family, sorted(names)) for family, names in sorted(found.items())]


def _scatter(
    cells: Sequence[tuple[int, CellResult]], labels: dict[str, str], min_psnr_db: float | None
) -> Scatter | None:
    marked = []
    for number, cell in cells:
        place = speed_and_fidelity(cell)
        if place is None or cell.speedup_over_large_range is None:
            continue
        speedup, fidelity = place
        low, high = cell.speedup_over_large_range
        where = "identical" if math.isinf(fidelity) else f"{figure(fidelity, 1)} dB"
        rounds = f" ({low:.2f}–{high:.2f})" if low < high else ""
        title = f"{cell.id}: {times(speedup)}{rounds}, {where}, {cell.observed}"
        label = labels.get(cell.id, "")
        marked.append(Marked(label, cell.observed or "", title, speedup, (low, high), fidelity, number))
    return scatter(marked, min_psnr_db) if marked else None


def _divergence(pair: PairRecord) -> list[LineChart]:
    if not pair.divergence:
        return []
    branches = dict.fromkeys(row["branch"] for row in pair.divergence)

    def chart(quantity: str, title: str, label: str) -> LineChart:
        curves = [
            (
                _BRANCHES.get(branch, branch or "velocity"),
                branch if branch in _BRANCHES else "cond",
                [(row["step_index"], row[quantity]) for row in pair.divergence if row["branch"] == branch],
            )
            for branch in branches
        ]
        return line_chart(title, label, curves, pair.boundary_steps or [])

    return [
        chart("relative_l2", "Relative distance of the velocities", "‖small − large‖ / ‖large‖"),
        chart("cosine", "Cosine of the velocities", "cosine, 1 = same direction"),
    ]
