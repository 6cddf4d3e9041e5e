"""The matrix as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..results.matrix_results import CellResult, Matrix
from .figures import figure, percent, times
from .grid import REFUSED_EVERYWHERE, make_grid
from .headline import headline
from .overview import brief, fidelity, pairs_with_cells, stacks_by_reason
from .view import DECLARED_MARKS, LEGEND

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"pass": "green", "degraded": "yellow", "broken": "bold red", "refused": "magenta"}
_MANY = 40
"""Above so many cells of a pair: a grid of them, and reasons of those only that need a look."""

_STACK_WIDTH, _CELL_WIDTH = 38, 17
"""In characters; where they do not fit side by side, the PSNR stands below the speed-up."""


def print_matrix(matrix: Matrix, report: Path) -> None:
    """Print every cell of every pair, the reasons of those that did not pass, and where the report is."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    found = pairs_with_cells(matrix)
    for pair, cells in found:
        if len(found) > 1:
            console.print(f"\n[bold]{escape(pair.name)}[/]", highlight=False)
        if len(cells) > _MANY:
            _print_grid(console, cells)
        else:
            _print_cells(console, cells)
        console.print(f"\n{escape(headline(pair, cells).text)}", highlight=False)
    console.print(f"The report is in {escape(str(report))}", highlight=False, soft_wrap=True)


def _print_cells(console: Console, cells: Sequence[CellResult]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("cell", overflow="fold", min_width=20)
    table.add_column("verdict", no_wrap=True)
    for heading in ("speed-up", "FLOPs", "PSNR dB", "SSIM"):
        table.add_column(heading, justify="right")
    for cell in cells:
        verdict = f"{DECLARED_MARKS.get(cell.declared or '', '?')} {_styled(cell, cell.observed or '-')}"
        table.add_row(escape(cell.id), verdict, *map(escape, _figures(cell)))
    console.print(table)
    if any(cell.declared for cell in cells):
        said = ", ".join(f"{mark} {name.replace('_', ' ')}" for name, mark in DECLARED_MARKS.items())
        console.print(f"Declared {said}; then what was observed.", highlight=False)
    schedules = list(dict.fromkeys(cell.schedule for cell in cells))
    for reason, stacks in stacks_by_reason((cell for cell in cells if cell.observed != "pass"), schedules):
        console.print(f"{escape('; '.join(stacks))}: {escape(reason)}", highlight=False)


def _print_grid(console: Console, cells: Sequence[CellResult]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    grid = make_grid(cells)
    is_narrow = console.width < _STACK_WIDTH + _CELL_WIDTH * len(grid.schedules)

    def said(cell: CellResult) -> str:
        return "\n".join(brief(cell).rsplit(" ", 1)) if is_narrow else brief(cell)

    num_refused = 0
    for group in grid.groups:
        if group.title == REFUSED_EVERYWHERE:
            num_refused = len(group.rows)
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=group.title, title_justify="left", title_style="bold")
        table.add_column("stack", overflow="fold")
        for schedule in grid.schedules:
            table.add_column(escape(schedule), no_wrap=True)
        for row in group.rows:
            table.add_row(escape(row.stack), *("" if cell is None else _styled(cell, said(cell)) for cell in row.cells))
        console.print(table)
    marks = ", ".join(f"{mark} {words}" for mark, words in LEGEND.items())
    console.print(f"{marks}; speed-up, PSNR in dB.", highlight=False)
    if num_refused:
        stacks = "1 stack is" if num_refused == 1 else f"{num_refused} stacks are"
        console.print(f"{stacks} refused on every schedule; the reasons are in the report.", highlight=False)
    to_see = [cell for cell in cells if cell.observed in ("broken", "skipped") or cell.surprise]
    for reason, names in stacks_by_reason(to_see, grid.schedules):
        console.print(f"{escape('; '.join(names))}: {escape(reason)}", highlight=False)


def print_work(matrix: Matrix) -> None:
    """Print what the run cost, and what it would have cost with nothing shared."""
    from rich.console import Console

    work = matrix.run.work
    if not work.num_forwards:
        return
    shared = work.num_forwards_without_sharing / work.num_forwards
    line = f"{work.num_forwards:,} denoiser forwards ({work.num_forwards_timed:,} timed) in {work.seconds:,.0f} s"
    if matrix.run.is_sharing and work.seconds_without_sharing is not None:
        line += (
            f"; with nothing shared {work.num_forwards_without_sharing:,}, {shared:.1f} times as many, and about "
            f"{work.seconds_without_sharing:,.0f} s of work instead of {work.seconds_in_workers:,.0f} s"
        )
    Console().print(f"{line}.", highlight=False, soft_wrap=True)


def _styled(cell: CellResult, text: str) -> str:
    from rich.markup import escape

    return f"[{_STYLES.get(cell.observed or '', 'dim')}]{escape(text)}[/]"


def _figures(cell: CellResult) -> tuple[str, ...]:
    return (
        times(cell.speedup_over_large),
        percent(cell.flops_fraction_full),
        "identical" if cell.is_identical_to_large else fidelity(cell),
        figure(cell.ssim, 3),
    )
