"""``docs/pairs.md`` runs as printed, and its tables leave out no check."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from flowblend_plugins.pairs.facts import FACTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "pairs.md").read_text()


def test_the_example_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.S)
    assert len(blocks) == PAGE.count("```python") == 2
    namespace: dict[str, Any] = {}
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/pairs.md", "exec"), namespace)
        assert printed.getvalue() == expected


def test_every_fact_is_in_the_tables() -> None:
    cells = {
        name.strip()
        for row in re.findall(r"^\| ([^|]+) \|", PAGE, re.M)
        for name in re.split(r",| of every text encoder", row)
    }
    meanings = {fact.meaning.split(" (")[0] for facts in FACTS.values() for fact in facts}
    assert not meanings - cells
