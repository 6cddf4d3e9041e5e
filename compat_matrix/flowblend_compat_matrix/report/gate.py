"""Gate of a run, for people who let a machine decide: the cells that make it fail, each with the reason."""

from __future__ import annotations

import enum
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import typer

from ..results.expectations import STALE_EXPECTATION, UNEXPECTED
from ..results.matrix_results import CellResult, Matrix
from ..results.verdicts import Observed

EXIT_CODE = 3
"""Of a run that was made and did not pass; 1 is one that could not be made."""


class FailOn(str, enum.Enum):
    """Verdicts that make the run fail, unless an expectation covers them."""

    DEGRADED = "degraded"
    BROKEN = "broken"
    UNEXPECTED = "unexpected"


DEFAULT = (FailOn.UNEXPECTED,)
_MANY = 40
"""Lines that a person reads; all of them are in the JUnit file."""


class Failure(NamedTuple):
    """A cell that fails the run."""

    cell: CellResult
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.cell.pair}: {self.cell.id}: {self.what}"


def find_failures(matrix: Matrix, fail_on: Collection[FailOn]) -> list[Failure]:
    """The cells at fault, in the order of the matrix."""
    found = (_failure(cell, fail_on) for cell in matrix.cells)
    return [failure for failure in found if failure is not None]


def _failure(cell: CellResult, fail_on: Collection[FailOn]) -> Failure | None:
    why = " ".join(cell.reasons)
    if FailOn.UNEXPECTED in fail_on and cell.surprise == STALE_EXPECTATION:
        what = f'observed {cell.observed}, but an expectation foresaw otherwise: "{cell.expectation}" {why}'
        return Failure(cell, STALE_EXPECTATION, what)
    if FailOn.UNEXPECTED in fail_on and cell.surprise is not None:
        declared = "nothing is declared" if cell.declared is None else f"declared {cell.declared}"
        return Failure(cell, UNEXPECTED, f"{declared}, observed {cell.observed}, and no expectation says why. {why}")
    is_expected = cell.expectation is not None and cell.surprise is None
    for kind, observed in ((FailOn.BROKEN, Observed.BROKEN), (FailOn.DEGRADED, Observed.DEGRADED)):
        if kind in fail_on and cell.observed == observed.value and not is_expected:
            return Failure(cell, kind.value, why)
    return None


def conclude(matrix: Matrix, fail_on: Collection[FailOn], junit: Path | None, summary: Path | None) -> None:
    """Write what a CI server reads, tell on standard error what fails, and end with exit code 3 if anything does.

    Raises:
        typer.Exit: the run does not pass.
        OutputError: a file cannot be written.
    """
    from .gate_files import write_gate_files

    failures = find_failures(matrix, fail_on)
    write_gate_files(matrix, failures, junit, summary)
    if not failures:
        return
    asked = ", ".join(dict.fromkeys(kind.value for kind in fail_on))
    typer.echo(f"{len(failures)} of {len(matrix.cells)} cells fail this run (--fail-on {asked}):", err=True)
    for failure in failures[:_MANY]:
        typer.echo(f"  {failure}", err=True)
    if len(failures) > _MANY:
        typer.echo(f"  and {len(failures) - _MANY} more", err=True)
    raise typer.Exit(EXIT_CODE)
