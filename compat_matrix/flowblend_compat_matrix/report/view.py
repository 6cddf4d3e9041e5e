"""What the report shows, worked out before the template sees it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..results import CellResult, Matrix
from .caveats import caveats
from .charts import LineChart, Marked, Scatter, line_chart, scatter
from .figures import figure, times
from .grid import MANY_CELLS, Grid, make_grid, standing_out, worth_watching
from .headline import Headline, headline

VERDICT_MARKS = {"pass": "✓", "degraded": "≈", "inert": "○", "refused": "⊘", "broken": "✕", "skipped": "…"}
_BRANCHES = {"cond": "with the prompt", "uncond": "without it", "guided": "after guidance"}


class Run(NamedTuple):
    """Consecutive steps of one denoiser; ``first`` and ``last`` counted from 1."""

    denoiser: str
    first: int
    last: int

    @property
    def num_steps(self) -> int:
        return self.last - self.first + 1


class Lane(NamedTuple):
    """One denoiser's steps: for every step ``""`` or what was done in it."""

    denoiser: str
    outcomes: list[str]


@dataclass(frozen=True)
class CellView:
    """A cell and what is drawn of it."""

    result: CellResult
    mark: str
    runs: list[Run]
    lanes: list[Lane]


class Column(NamedTuple):
    """Videos of one cell, one for each shown prompt."""

    label: str
    note: str
    videos: list[str]


@dataclass(frozen=True)
class View:
    """Everything on the page."""

    headline: Headline
    grid: Grid | None
    marks: dict[str, str]
    cells: list[CellView]
    cards: list[CellView]
    folded: list[CellView]
    columns: list[Column]
    prompts: list[str]
    scatter: Scatter | None
    divergence: list[LineChart]
    metric_names: list[str]
    has_stacks: bool
    caveats: list[str]


def make_view(matrix: Matrix) -> View:
    """Work out the whole page."""
    columns = _columns(matrix)
    num_shown = max((len(column.videos) for column in columns), default=0)
    cells = [_cell_view(cell) for cell in matrix.cells]
    with_card = {cell.id for cell in standing_out(matrix)}
    return View(
        headline=headline(matrix),
        grid=make_grid(matrix),
        marks=VERDICT_MARKS,
        cells=cells,
        cards=[cell for cell in cells if cell.result.id in with_card],
        folded=[cell for cell in cells if cell.result.id not in with_card],
        columns=columns,
        prompts=matrix.run.pairs[0].prompts[:num_shown],
        scatter=_scatter(matrix),
        divergence=_divergence(matrix),
        metric_names=sorted({name for cell in matrix.cells for name in cell.metrics}),
        has_stacks=any(cell.adapters for cell in matrix.cells),
        caveats=caveats(matrix),
    )


def _cell_view(cell: CellResult) -> CellView:
    answers = [(row["step_index"] + 1, row["denoiser"]) for row in cell.timeline]
    runs = []
    for denoiser, group in itertools.groupby(answers, key=lambda answer: answer[1]):
        steps = [step for step, _ in group]
        runs.append(Run(denoiser, steps[0], steps[-1]))
    lanes = [
        Lane(letter, [_outcome(row) if row["denoiser"] == letter else "" for row in cell.timeline])
        for letter in sorted({row["denoiser"] for row in cell.timeline} | ({"L", "S"} if cell.timeline else set()))
    ]
    return CellView(cell, VERDICT_MARKS.get(cell.observed or "", "?"), runs, lanes)


def _outcome(row: dict[str, Any]) -> str:
    """What was done in a step; ``mixed`` where the guidance branches differ."""
    outcomes = set(row["outcomes"].values())
    return outcomes.pop() if len(outcomes) == 1 else "mixed"


def _columns(matrix: Matrix) -> list[Column]:
    columns = []
    if matrix.run.pairs[0].large_only.videos:
        columns.append(Column("large only", "the reference", matrix.run.pairs[0].large_only.videos))
    for cell in worth_watching(matrix):
        if cell.videos:
            note = "equals large-only" if cell.is_identical_to_large else f"{figure(cell.psnr_db, 1)} dB"
            columns.append(Column(cell.id, f"{note}, {times(cell.speedup_over_large)}", cell.videos))
    return columns


def _scatter(matrix: Matrix) -> Scatter | None:
    marked = []
    for cell in matrix.cells:
        fidelity = math.inf if cell.is_identical_to_large else cell.psnr_db
        if cell.speedup_over_large is None or cell.speedup_over_large_range is None or fidelity is None:
            continue
        low, high = cell.speedup_over_large_range
        where = "identical" if math.isinf(fidelity) else f"{fidelity:.1f} dB"
        title = f"{cell.id}: {times(cell.speedup_over_large)} ({low:.2f}–{high:.2f}), {where}, {cell.observed}"
        marked.append(Marked(cell.id, cell.observed or "", title, cell.speedup_over_large, (low, high), fidelity))
    if not marked:
        return None
    return scatter(marked, matrix.run.budget.get("min_psnr_db"), label_all=len(marked) <= MANY_CELLS)


def _divergence(matrix: Matrix) -> list[LineChart]:
    if not matrix.run.pairs[0].divergence:
        return []
    branches = dict.fromkeys(row["branch"] for row in matrix.run.pairs[0].divergence)
    boundaries = matrix.run.pairs[0].boundary_steps or []

    def chart(quantity: str, title: str, label: str) -> LineChart:
        curves = [
            (
                _BRANCHES.get(branch, branch or "velocity"),
                branch if branch in _BRANCHES else "cond",
                [
                    (row["step_index"], row[quantity])
                    for row in matrix.run.pairs[0].divergence
                    if row["branch"] == branch
                ],
            )
            for branch in branches
        ]
        return line_chart(title, label, curves, boundaries)

    return [
        chart("relative_l2", "Relative distance of the velocities", "‖small − large‖ / ‖large‖"),
        chart("cosine", "Cosine of the velocities", "cosine, 1 = same direction"),
    ]
