"""Tables in GitHub's Markdown, with whatever comes from outside as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table and an empty one after it; everything in it is escaped."""
    lines = ["| " + " | ".join(map(escape, heads)) + " |", "|" + " --- |" * len(heads)]
    return [*lines, *("| " + " | ".join(map(escape, row)) + " |" for row in rows), ""]


def escape(text: str) -> str:
    """Escape text for use within a line: no mark-up, no HTML, no line breaks, no mention of anybody."""
    text = " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
    return re.sub(r"([\\`*_|\[\]~@#])", r"\\\1", text)
