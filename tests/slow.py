"""Mark the cases of ``slow.txt`` as slow, and keep that list honest."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

MOST = 0.1
"""Share of all cases that may be slow."""


def mark_slow(items: Sequence[pytest.Item], is_whole_suite: bool) -> None:
    """Mark the items that a pattern of ``slow.txt`` matches.

    Raises:
        pytest.UsageError: of the whole suite, a pattern matches nothing, or more than a tenth is slow.
    """
    lines = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    unused = {line for line in lines if line and not line.startswith("#")}
    patterns, num_slow = sorted(unused), 0
    for item in items:
        matching = [pattern for pattern in patterns if fnmatchcase(item.nodeid, pattern)]
        if matching:
            item.add_marker(pytest.mark.slow)
            num_slow += 1
            unused.difference_update(matching)
    if is_whole_suite and unused:
        raise pytest.UsageError(f"tests/slow.txt: nothing is called {', '.join(sorted(unused))}. Remove or rename it.")
    if is_whole_suite and num_slow > MOST * len(items):
        raise pytest.UsageError(f"tests/slow.txt: {num_slow} of {len(items)} cases are slow, more than a tenth.")
