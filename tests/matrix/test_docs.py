"""``docs/matrix.md`` names every field and verdict, states the budget that is in force, and its example runs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

from flowblend_compat_matrix.results.cells import PAPER_SCHEDULES
from flowblend_compat_matrix.results.matrix_results import CellResult, Matrix
from flowblend_compat_matrix.results.verdicts import Observed, QualityBudget
from flowblend_compat_matrix.running.planning import shown_prompts

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "matrix.md").read_text()


def first_column(heading: str) -> set[str]:
    """What the table under a heading has in backticks in its first column."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {name for row in re.findall(r"^\| (`[^|]+) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)}


def test_the_tables_are_what_the_code_has() -> None:
    assert first_column("matrix.json") == {field.name for field in dataclasses.fields(CellResult)}
    assert first_column("Verdicts") == {verdict.value for verdict in Observed}
    for field in dataclasses.fields(Matrix):
        assert f'"{field.name}"' in PAGE


def test_the_budget_and_the_defaults_are_those_in_force() -> None:
    budget = QualityBudget()
    assert f"under {budget.min_psnr_db:g} dB" in PAGE
    assert f"SSIM under {budget.min_ssim:g}," in PAGE
    assert f"under {budget.min_alignment_kept:.0%}".replace("%", " %") in PAGE
    assert ", ".join(PAPER_SCHEDULES) in " ".join(PAGE.split())
    assert [shown_prompts(num) for num in (60, 200, 201)] == [3, 2, 1]
    assert "three prompts of every cell; two where there are more than 60 cells, one beyond 200" in " ".join(
        PAGE.split()
    )


def test_the_example_prints_what_the_page_says() -> None:
    ((code, expected),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.S)
    namespace: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "docs/matrix.md", "exec"), namespace)
    assert printed.getvalue() == expected
