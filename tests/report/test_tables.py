"""The same in Markdown and in the terminal: every cell is there, reasons are said once, nothing becomes markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flowblend_compat_matrix.report.markdown import render_markdown
from flowblend_compat_matrix.report.terminal import print_matrix
from flowblend_compat_matrix.results.matrix_results import CellResult, Matrix
from flowblend_compat_matrix.running.folder import write_matrix
from flowblend_plugins.cli import run
from tests.report.samples import ATTACK, cell, embedded, matrix, refused

SCHEDULES = ("LLL", "LSL", "LSS", "SLL", "SSS")


def crossed(num_stacks: int, num_refused: int) -> list[CellResult]:
    stacks = [[], *([f"cache(threshold={number})", "solver"] for number in range(num_stacks))]
    cells = [
        cell(schedule, id=" + ".join([schedule, *stack]), adapters=stack) for stack in stacks for schedule in SCHEDULES
    ]
    for number in range(num_refused):
        for schedule in SCHEDULES:
            stack = [f"wrapper_{number}"]
            no = cell(schedule, id=f"{schedule} + {stack[0]}", adapters=stack, observed="refused", declared="refused")
            no.speedup_over_large, no.reasons = None, [f"Reason {number // 10}."]
            cells.append(no)
    return cells


def tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of every table, as GitHub splits them."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", text, re.M)
    return [
        [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        for block in found
    ]


def test_a_thousand_cells_can_be_read() -> None:
    cells = crossed(150, 50)
    text = render_markdown(matrix(*cells))
    assert all(len({len(row) for row in table}) == 1 for table in tables(text))
    rows = {row[0]: row[1:] for table in tables(text) for row in table if len(row) == 1 + len(SCHEDULES)}
    assert rows["cache(threshold=149) + solver"] == ["✓ 1.40× 22.0"] * 5
    assert len(text.splitlines()) < 260
    assert len(text.encode()) < 60_000
    (reasons,) = (table for table in tables(text) if table[0] == ["stack", "why"])
    assert len(reasons) == 2 + 5, "each reason once"
    assert sum(row[0].count("wrapper") for row in reasons) == 50


def test_markdown_says_what_is_not_as_declared_and_what_was_foreseen() -> None:
    cells = crossed(1, 1)
    cells[5].surprise, cells[5].reasons = "unexpected", ["It differs."]
    cells[6].expectation = "Known since long."
    cells[6].observed = "inert"
    broken = cell("LSS", id="LSS + z", adapters=["z"], observed="broken", reasons=["It raised."])
    text = render_markdown(matrix(*cells, broken))
    assert "✓! 1.40× 22.0" in text
    found = {table[0][-1] + table[0][0]: table for table in tables(text)}
    assert found["whycell"][2] == [r"LLL + cache(threshold=0) + solver", "composes", "pass", "It differs."]
    assert ["cache(threshold=0) + solver on LSL", "inert", "Known since long."] in [
        row for t in tables(text) for row in t
    ]
    assert ["z on LSS", "It raised."] in [row for t in tables(text) for row in t]


def test_both_name_every_pair(capsys: pytest.CaptureFixture[str]) -> None:
    full = matrix(*crossed(0, 0))
    other = matrix(refused("LSL + a"), name="stills", makes="stills", fps=None)
    other.cells[0].pair = "stills"
    full.cells += other.cells
    full.run.pairs += other.run.pairs
    text = render_markdown(full)
    assert "## tiny" in text
    assert "## stills" in text
    assert text.count("FLOPs count 2 per multiply-add") == 1, "what holds for every pair is said once"
    print_matrix(full, Path("report.html"))
    printed = capsys.readouterr().out
    assert re.search(r"^tiny$", printed, re.M)
    assert re.search(r"^stills$", printed, re.M)


def test_what_comes_from_outside_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = cell(
        id=ATTACK, schedule=ATTACK, adapters=[ATTACK], reasons=[ATTACK], observed="broken", surprise="unexpected"
    )
    full = matrix(hostile, pair=ATTACK, pipeline=ATTACK, command=f"flowblend\n```\n{ATTACK}", call={ATTACK: ATTACK})
    hostile.pair = ATTACK
    full.environment["device"] = ATTACK
    outside_code = re.sub(r"^```console\n.*?^```$", "", render_markdown(full), flags=re.M | re.S)
    assert "alert" in outside_code
    assert "<" not in outside_code
    assert not re.search(r"(?<!\\)[`\[]", outside_code)
    print_matrix(full, Path("report.html"))
    assert "[bold]" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("num_stacks", [1, 60])
def test_the_terminal_shows_every_stack(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, num_stacks: int, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    cells = crossed(num_stacks, 1)
    cells[-6].observed, cells[-6].reasons = "broken", ["It raised ValueError: [red]no"]
    print_matrix(matrix(*cells), Path("report.html"))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"cache(threshold={num_stacks - 1})" in printed
    assert "ValueError: [red]no" in printed
    assert "1.40×" in printed


def test_report_writes_either_format(tmp_path: Path) -> None:
    results = matrix(*crossed(1, 1))
    results.cells[0].videos = ["v.mp4"]
    (tmp_path / "v.mp4").write_bytes(bytes(500_000))
    write_matrix(tmp_path, results)
    command = ["matrix", "report", str(tmp_path)]
    assert run([*command, "--format", "markdown"]) == 0
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == render_markdown(_as_read(results))
    assert not (tmp_path / "report.html").exists()
    assert run(command) == 0
    page = tmp_path / "report.html"
    assert embedded(page.read_text(encoding="utf-8"), "media")["leftOut"] == []
    assert run([*command, "--max-mb", "0.5"]) == 0
    assert embedded(page.read_text(encoding="utf-8"), "media")["leftOut"] == ["v.mp4"]
    assert page.stat().st_size < 500_000
    assert run([*command, "--format", "pdf"]) == 2
    assert run([*command, "--max-mb", "0"]) == 2


def _as_read(results: Matrix) -> Matrix:
    return Matrix.from_dict(results.to_dict())
