"""The difference of two runs in the terminal: verdicts first."""

from __future__ import annotations

from ..results.diff import Change, MatrixDiff


def print_diff(found: MatrixDiff) -> None:
    """Print what changed, cell by cell, and what the runs were made with where that differs."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for title, changes in (
        ("Verdicts that changed", [change for change in found.changes if change.is_verdict]),
        ("Figures that moved", [change for change in found.changes if not change.is_verdict]),
    ):
        if not changes:
            continue
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("cell", overflow="fold")
        for heading in ("what", "old", "new", "by chance"):
            table.add_column(heading)
        for change in changes:
            table.add_row(*(escape(text) for text in _row(change)))
        console.print(table)
    for title, keys in (("Only in the old run", found.removed), ("Only in the new run", found.added)):
        if keys:
            console.print(f"{title} ({len(keys)}):", highlight=False)
            for pair, cell in keys:
                console.print(f"  {escape(pair)}: {escape(cell)}", highlight=False, soft_wrap=True)
    for name, (old, new) in found.environment.items():
        console.print(f"{escape(name)}: {escape(str(old))} -> {escape(str(new))}", highlight=False, soft_wrap=True)
    summary = "nothing changed" if found.is_empty else f"{len(found.changes)} changes"
    console.print(f"{found.num_compared} cells compared: {summary}.", highlight=False)


def _row(change: Change) -> tuple[str, ...]:
    noise = "" if change.noise is None else f"up to {change.noise:.2g}"
    return f"{change.pair}: {change.cell}", change.what, _text(change.old), _text(change.new), noise


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
