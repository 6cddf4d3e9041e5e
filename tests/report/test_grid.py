"""The grid: stacks down, schedules across, in groups; every pair has its own."""

from __future__ import annotations

from pathlib import Path

from flowblend_compat_matrix.report import render_report
from flowblend_compat_matrix.report.grid import ALONE, REFUSED_EVERYWHERE, make_grid
from flowblend_compat_matrix.results.matrix_results import CellResult
from tests.report.samples import Page, cell, embedded, matrix, refused

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


def test_the_page_holds_every_cell_once_as_text(tmp_path: Path) -> None:
    full = matrix(*crossed([], ["<b>"], ["unipc", "teacache"]), refused("LSL + a"))
    source = render_report(full, tmp_path)
    page = Page(source)
    places = [a["data-cell"] or "" for a in page.of("button") if (a.get("class") or "").startswith("cell ")]
    assert sorted(int(place) for place in places) == list(range(len(full.cells)))
    assert "unipc + teacache" in page.text
    assert "&lt;b&gt;" in source
    assert "<b>LSL + <b>" not in source


def test_the_filters_offer_adapters_by_family(tmp_path: Path) -> None:
    families = {"teacache": "feature_caching", "unipc": "step_reduction"}
    full = matrix(*crossed([], ["teacache(threshold=0.1)"], ["unipc", "teacache(threshold=0.2)"]), families=families)
    source = render_report(full, tmp_path)
    page = Page(source)
    assert [group["label"] for group in page.of("optgroup")] == ["feature caching", "step reduction"]
    values = [option.get("value") for option in page.of("option") if option.get("value")]
    assert values == ["family:feature_caching", "adapter:teacache", "family:step_reduction", "adapter:unipc"]
    assert embedded(source, "data")["cells"][-1]["adapters"] == ["unipc", "teacache"]
    assert embedded(source, "data")["families"] == families


def test_every_pair_has_its_own_part_of_the_page(tmp_path: Path) -> None:
    full = matrix(*crossed([]))
    other = matrix(refused("LSL + a"), name="stills", makes="stills", fps=None)
    other.cells[0].pair = "stills"
    full.cells += other.cells
    full.run.pairs += other.run.pairs
    source = render_report(full, tmp_path)
    page = Page(source)
    assert [tab["aria-controls"] for tab in page.of("button") if tab.get("role") == "tab"] == ["pair-1", "pair-2"]
    assert [part["id"] for part in page.of("article")] == ["pair-1", "pair-2"]
    assert embedded(source, "data")["pairs"].keys() == {"tiny", "stills"}
    assert "tiny, stills" in page.text
