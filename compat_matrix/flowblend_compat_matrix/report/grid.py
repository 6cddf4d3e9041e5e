"""Stacks down, schedules across: the page's overview where there are too many cells for a card each."""

from __future__ import annotations

from typing import NamedTuple

from ..results import CellResult, Matrix

MANY_CELLS = 12
"""Above this, cells with a stack are folded away beneath the grid."""


class GridRow(NamedTuple):
    """One stack on every schedule; ``None`` where that cell is not in the matrix."""

    stack: str
    cells: list[CellResult | None]


class Grid(NamedTuple):
    """The verdict grid."""

    schedules: list[str]
    rows: list[GridRow]


def make_grid(matrix: Matrix) -> Grid | None:
    """The grid of a matrix that has stacks; its first row is the blend alone."""
    if not any(cell.adapters for cell in matrix.cells):
        return None
    schedules = list(dict.fromkeys(cell.schedule for cell in matrix.cells))
    stacks = list(dict.fromkeys(tuple(cell.adapters) for cell in matrix.cells))
    found = {(tuple(cell.adapters), cell.schedule): cell for cell in matrix.cells}
    rows = [
        GridRow(" + ".join(stack) or "nothing stacked", [found.get((stack, schedule)) for schedule in schedules])
        for stack in sorted(stacks, key=bool)
    ]
    return Grid(schedules, rows)


def standing_out(matrix: Matrix) -> list[CellResult]:
    """Cells that get a card of their own: all of a few; of many, the schedules alone and whatever is broken."""
    if len(matrix.cells) <= MANY_CELLS:
        return list(matrix.cells)
    return [cell for cell in matrix.cells if not cell.adapters or cell.observed == "broken"]


def worth_watching(matrix: Matrix) -> list[CellResult]:
    """Cells whose videos are shown: all of a few; of many, the schedules alone and every stack on the first blend."""
    if len(matrix.cells) <= MANY_CELLS:
        return list(matrix.cells)
    blends = [cell.schedule for cell in matrix.cells if cell.num_large_forwards and cell.num_small_forwards]
    return [cell for cell in matrix.cells if not cell.adapters or cell.schedule in blends[:1]]
