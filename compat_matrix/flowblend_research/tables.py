"""Tables in Markdown for pages that are committed, and figures as they show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; cells may hold Markdown of their own."""
    return [
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def shown(value: float | None, form: str = ".1f", spread: float | None = None) -> str:
    """A figure in a format, with its spread after ``±``; ``-`` where it was not measured."""
    if value is None:
        return "-"
    return format(value, form) if spread is None else f"{value:{form}} ± {spread:{form}}"
