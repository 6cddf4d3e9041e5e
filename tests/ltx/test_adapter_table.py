"""The generated table of docs/ltx.md is what is measured: every adapter on every LTX pipeline."""

from __future__ import annotations

import pytest

from tests.ltx.adapter_table import PIPELINES, adapter_names, cell, rows

ROWS = rows()


def test_every_adapter_has_a_row() -> None:
    assert sorted(ROWS) == adapter_names(), "run python -m tests.ltx.adapter_table NAME"


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", adapter_names())
def test_a_cell_is_what_is_measured(name: str, pipeline: str) -> None:
    assert ROWS[name][list(PIPELINES).index(pipeline)] == cell(name, PIPELINES[pipeline])
