"""Baselines of a cell: large-only, the schedule without the stack, and the stack without the schedule."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from flowblend_plugins.schedule import StageSchedule

from ..results.cells import CellSpec

LARGE_ALONE = StageSchedule.named("LLL")
SMALL_ALONE = StageSchedule.named("SSS")


def blend_of(spec: CellSpec) -> CellSpec | None:
    """The baseline without the stack, where that is not large-only."""
    return CellSpec(spec.schedule) if spec.stack and spec.schedule.letters != {"L"} else None


def stack_of(spec: CellSpec) -> CellSpec | None:
    """The baseline without the schedule: the stack on the large denoiser alone."""
    return CellSpec(LARGE_ALONE, spec.stack) if spec.stack and spec.schedule.letters != {"L"} else None


def baselines_of(spec: CellSpec) -> list[CellSpec]:
    """Baselines between large-only, which every cell has, and this cell."""
    return [baseline for baseline in (blend_of(spec), stack_of(spec)) if baseline is not None]


def num_switches(spec: CellSpec) -> int:
    """Cells with fewer switches come first: a later one shares their steps up to where it switches."""
    letters = [run.denoiser for run in spec.schedule.runs]
    return sum(a != b for a, b in itertools.pairwise(letters))


def round_of_timing(specs: Iterable[CellSpec], number: int) -> list[CellSpec | None]:
    """A round of timing: every cell and every baseline of any of them once, then large-only (``None``).

    Every other round goes backwards, so that a machine that slows down slows all of them alike.
    """
    cells = list(specs)
    runs = dict.fromkeys([*cells, *(baseline for cell in cells for baseline in baselines_of(cell))])
    order = [*runs, None]
    return order if number % 2 == 0 else order[::-1]
