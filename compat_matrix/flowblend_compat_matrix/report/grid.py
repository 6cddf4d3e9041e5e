"""Stacks down, schedules across: the overview of one pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..results.matrix_results import CellResult

_NUMERALS = {1: "One adapter", 2: "Two adapters", 3: "Three adapters"}
ALONE = "Schedules alone"
REFUSED_EVERYWHERE = "Refused on every schedule"


class GridRow(NamedTuple):
    """One stack on every schedule; ``None`` where that cell is not in the matrix."""

    stack: str
    cells: list[CellResult | None]


class GridGroup(NamedTuple):
    """Rows of one kind of stack."""

    title: str
    rows: list[GridRow]


class Grid(NamedTuple):
    """Verdicts of stacks on schedules, as a grid."""

    schedules: list[str]
    groups: list[GridGroup]

    @property
    def rows(self) -> list[GridRow]:
        return [row for group in self.groups for row in group.rows]


def make_grid(cells: Sequence[CellResult]) -> Grid:
    """The grid of one pair's cells: the schedules alone, one adapter, two and more, and what is refused everywhere."""
    schedules = list(dict.fromkeys(cell.schedule for cell in cells))
    stacks = list(dict.fromkeys(tuple(cell.adapters) for cell in cells))
    found = {(tuple(cell.adapters), cell.schedule): cell for cell in cells}
    groups: dict[str, list[GridRow]] = {}
    for stack in sorted(stacks, key=len):
        row = GridRow(stack_name(stack), [found.get((stack, schedule)) for schedule in schedules])
        groups.setdefault(_kind(stack, row), []).append(row)
    refused = groups.pop(REFUSED_EVERYWHERE, None)
    if refused:
        groups[REFUSED_EVERYWHERE] = refused
    return Grid(schedules, [GridGroup(title, rows) for title, rows in groups.items()])


def stack_name(stack: Sequence[str]) -> str:
    """A stack as people read it."""
    return " + ".join(stack) or "nothing stacked"


def _kind(stack: Sequence[str], row: GridRow) -> str:
    if not stack:
        return ALONE
    if all(cell is None or cell.observed == "refused" for cell in row.cells):
        return REFUSED_EVERYWHERE
    return _NUMERALS.get(len(stack), f"{len(stack)} adapters")
