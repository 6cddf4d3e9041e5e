"""The generated table of docs/ltx.md is what is measured: every adapter on every LTX pipeline."""

from __future__ import annotations

import re

import pytest

from tests.ltx.adapter_table import PAGE, PIPELINES, adapter_names, cell

ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in re.findall(
        r"^\| (`\w+` \| .*) \|$", PAGE.read_text(encoding="utf-8").partition("adapter_table.py -->")[2], re.M
    )
    if (cells := [part.strip() for part in line.split(" | ")])
}


def test_every_adapter_has_a_row() -> None:
    assert sorted(ROWS) == adapter_names()


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", adapter_names())
def test_a_cell_is_what_is_measured(name: str, pipeline: str) -> None:
    assert ROWS[name][list(PIPELINES).index(pipeline)] == cell(name, PIPELINES[pipeline])
