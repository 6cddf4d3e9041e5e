"""The matrix as a table in the terminal."""

from __future__ import annotations

from pathlib import Path

from ..results import CellResult, Matrix
from .figures import figure, percent, times
from .headline import headline

_STYLES = {"pass": "green", "degraded": "yellow", "broken": "bold red", "refused": "magenta"}


def print_matrix(matrix: Matrix, report: Path) -> None:
    """Print a row for every cell, the reasons of those that did not pass, and where the report is."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("cell", overflow="fold")
    table.add_column("verdict")
    for heading in ("speed-up", "FLOPs", "PSNR dB", "SSIM", "aligned"):
        table.add_column(heading, justify="right")
    for cell in matrix.cells:
        style = _STYLES.get(cell.observed or "", "dim")
        verdict = f"[{style}]{escape(cell.observed or '-')}[/]"
        table.add_row(escape(cell.id), verdict, *(escape(text) for text in _figures(cell)))
    console.print(table)
    for cell in matrix.cells:
        if cell.observed != "pass":
            for reason in cell.reasons:
                console.print(f"{escape(cell.id)}: {escape(reason)}", highlight=False)
    console.print(f"\n{escape(headline(matrix).text)}", highlight=False)
    console.print(f"The report with the videos is in {escape(str(report))}", highlight=False, soft_wrap=True)


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


def _figures(cell: CellResult) -> tuple[str, ...]:
    psnr = "identical" if cell.is_identical_to_large else figure(cell.psnr_db, 1)
    return (
        times(cell.speedup_over_large),
        percent(cell.flops_fraction_full),
        psnr,
        figure(cell.ssim, 3),
        figure(cell.prompt_alignment, 3),
    )
