"""Cells of the matrix: one for each stage schedule and stack of adapters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from flowblend_plugins.errors import UsageError
from flowblend_plugins.schedule import StageSchedule

PAPER_SCHEDULES = ("LLL", "LSL", "LSS", "SLL", "SSS")
"""The schedules that FlowBlending (arXiv 2512.24724) compares."""


Stack = tuple[str, ...]
"""Adapters as ``"name(option=value)"``, in the order they are attached."""


@dataclass(frozen=True)
class CellSpec:
    """One entry of the matrix before it is measured.

    Attributes:
        schedule: which denoiser answers at which step.
        stack: adapters as ``"name(option=value)"``, in the order they are attached; empty for the blend alone.
    """

    schedule: StageSchedule
    stack: Stack = ()

    @property
    def id(self) -> str:
        """Name of the cell for people: ``"LSL"``, ``"LSL + unipc(num_inference_steps=25)"``."""
        return " + ".join((self.schedule.text, *self.stack))

    @property
    def file_stem(self) -> str:
        """The id as a file name takes it."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.id).strip("-")

    @property
    def is_large_alone(self) -> bool:
        """Whether this is large-only under the router: nothing stacked, and no other denoiser is ever called."""
        return not self.stack and self.schedule.letters == {"L"}


def plan_cells(schedules: Iterable[StageSchedule], stacks: Iterable[Stack] = ()) -> list[CellSpec]:
    """Every schedule alone, then every stack on every schedule; each cell once.

    Raises:
        UsageError: two different cells would share their file names.
    """
    rows = list(schedules)
    cells = list(dict.fromkeys(CellSpec(schedule, stack) for stack in ((), *stacks) for schedule in rows))
    by_stem: dict[str, CellSpec] = {}
    for cell in cells:
        other = by_stem.setdefault(cell.file_stem, cell)
        if other is not cell:
            raise UsageError(f"{other.id!r} and {cell.id!r} differ too little to be told apart. Leave one of them out.")
    return cells


def parse_stack(text: str) -> Stack:
    """The adapters of one stack: ``"unipc(num_inference_steps=25) + teacache"`` is two.

    Raises:
        UsageError: nothing stands on one side of a ``+``.
    """
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "+" and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    if not all(parts):
        raise UsageError(
            f'--adapter {text!r}: expected "name(option=value)", or several joined by "+" to be stacked together.'
        )
    return tuple(parts)
