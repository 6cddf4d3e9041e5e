"""Many cells on one page: a grid of all of them, cards and videos of a few."""

from __future__ import annotations

from pathlib import Path

from flowblend_compat_matrix.report import render_report
from flowblend_compat_matrix.report.grid import MANY_CELLS, make_grid, standing_out, worth_watching
from flowblend_compat_matrix.results import CellResult, Matrix
from tests.matrix.test_report import Page, cell, matrix, refused

SCHEDULES = ("LLL", "LSL", "SSS")
STACKS = ([], ["teacache"], ["unipc", "teacache"], ["<b>"], ["sea_cache"])


def crossed(*stacks: list[str]) -> list[CellResult]:
    return [
        cell(
            schedule,
            id=" + ".join([schedule, *stack]),
            adapters=stack,
            num_large_forwards=0 if schedule == "SSS" else 6,
            num_small_forwards=0 if schedule == "LLL" else 2,
            reasons=["Because <i>."],
        )
        for stack in stacks
        for schedule in SCHEDULES
    ]


def many() -> Matrix:
    cells = crossed(*STACKS)
    assert len(cells) > MANY_CELLS
    return matrix(*cells)


def test_without_stacks_there_is_no_grid(tmp_path: Path) -> None:
    plain = matrix(*crossed([]))
    assert make_grid(plain) is None
    assert "Every stack on every schedule" not in render_report(plain, tmp_path)


def test_the_blend_alone_is_the_first_row_and_a_missing_cell_is_a_gap() -> None:
    cells = crossed(["teacache"], [])[:-1]  # as after an interruption
    grid = make_grid(matrix(*cells))
    assert grid is not None
    assert grid.schedules == list(SCHEDULES)
    assert [row.stack for row in grid.rows] == ["nothing stacked", "teacache"]
    assert [one and one.id for one in grid.rows[0].cells] == ["LLL", "LSL", None]
    assert [one and one.id for one in grid.rows[1].cells] == ["LLL + teacache", "LSL + teacache", "SSS + teacache"]


def test_few_cells_all_stand_out() -> None:
    few = matrix(*crossed([], ["teacache"]))
    assert standing_out(few) == worth_watching(few) == few.cells


def test_of_many_the_schedules_alone_what_is_broken_and_the_stacks_on_the_first_blend() -> None:
    full = many()
    full.cells[-1].observed = "broken"
    assert [one.id for one in standing_out(full)] == ["LLL", "LSL", "SSS", "SSS + sea_cache"]
    watched = [one.id for one in worth_watching(full)]
    assert watched == ["LLL", "LSL", "SSS", *("LSL + " + " + ".join(stack) for stack in STACKS[1:])]


def test_the_page_holds_every_stack_as_text_and_folds_the_other_cells(tmp_path: Path) -> None:
    full = many()
    full.cells.append(refused("LSL + a"))
    source = render_report(full, tmp_path)
    page = Page(source)
    assert "Every stack on every schedule" in page.text
    rows = [part.strip() for part in page.text.split("\n")]
    assert any("unipc + teacache" in part for part in rows)
    assert "&lt;b&gt;" in source
    assert "<b>LSL + <b>" not in source
    assert f"The other {len(full.cells) - len(SCHEDULES)} cells, one by one" in page.text
    titles = [attributes.get("title") for attributes in page.of("td")]
    assert titles.count("Because <i>.") >= len(full.cells) - 1
