"""The grid: stacks down, schedules across, in groups; every pair has its own."""

from __future__ import annotations

from flowblend_compat_matrix.report.grid import ALONE, REFUSED_EVERYWHERE, make_grid
from flowblend_compat_matrix.results.matrix_results import CellResult
from tests.report.samples import cell

SCHEDULES = ("LLL", "LSL", "SSS")


def crossed(*stacks: list[str]) -> list[CellResult]:
    return [
        cell(schedule, id=" + ".join([schedule, *stack]), adapters=stack, reasons=["Because <i>."])
        for stack in stacks
        for schedule in SCHEDULES
    ]


def test_the_schedules_alone_come_first_and_a_missing_cell_is_a_gap() -> None:
    cells = crossed(["teacache"], [])[:-1]  # as after an interruption
    grid = make_grid(cells)
    assert grid.schedules == list(SCHEDULES)
    assert [row.stack for row in grid.rows] == ["nothing stacked", "teacache"]
    assert [one and one.id for one in grid.rows[0].cells] == ["LLL", "LSL", None]
    assert [one and one.id for one in grid.rows[1].cells] == ["LLL + teacache", "LSL + teacache", "SSS + teacache"]


def test_what_is_refused_on_every_schedule_comes_last() -> None:
    cells = crossed([], ["a"], ["a", "b"], ["c"], ["a", "b", "c", "d"])
    for one in cells:
        if one.adapters == ["a"] or (one.adapters == ["c"] and one.schedule == "LSL"):
            one.observed = "refused"
    grid = make_grid(cells)
    assert [(group.title, [row.stack for row in group.rows]) for group in grid.groups] == [
        (ALONE, ["nothing stacked"]),
        ("One adapter", ["c"]),
        ("Two adapters", ["a + b"]),
        ("4 adapters", ["a + b + c + d"]),
        (REFUSED_EVERYWHERE, ["a"]),
    ]
