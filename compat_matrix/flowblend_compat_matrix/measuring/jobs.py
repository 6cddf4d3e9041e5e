"""Jobs for workers, and the messages that come back: values that can be pickled, nothing loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowblend_plugins.files.video import read_image
from flowblend_plugins.pairs.placement import Placement
from flowblend_plugins.types import JsonObject

from ..results.cells import CellSpec
from ..results.matrix_results import CellResult, PairRecord
from ..results.verdicts import QualityBudget


@dataclass(frozen=True, kw_only=True)
class PairJob:
    """Instructions to load a pair, and the arguments its pipeline is called with.

    Attributes:
        name: as results name it.
        preset: name of the registered pair; ``None`` where ``large`` and ``small`` replace it.
        large, small: hub ids or folders that override the preset's.
        prompts: what to show; ``None`` for ``num_prompts`` of the pair's own, judged where the pair has a judge.
        first_prompt: number of the first of the pair's own; those with fewer prompts show the same ones again.
        num_seeds: videos of each prompt.
        seed: video ``i`` starts from the noise of ``seed + i``.
        call: keyword arguments of the pipeline call.
        placement: device, dtype and offloading.
        asked: names of those that were asked for, which no adapter may set otherwise in silence.
        early, late: stage boundaries of schedules by name, for the record; the schedules of the cells carry their own.
    """

    name: str
    preset: str | None
    large: str | None = None
    small: str | None = None
    prompts: tuple[str, ...] | None = None
    num_prompts: int = 1
    first_prompt: int = 0
    num_seeds: int = 1
    seed: int = 0
    call: JsonObject = field(default_factory=dict)
    placement: Placement | None = None
    asked: frozenset[str] = frozenset()
    early: float
    late: float

    def arguments(self) -> JsonObject:
        """Keyword arguments of the pipeline call, with the image that ``call`` names."""
        return {name: read_image(Path(value)) if name == "image" else value for name, value in self.call.items()}

    @property
    def num_videos(self) -> int:
        """Videos of a cell, at most."""
        return (self.num_prompts if self.prompts is None else len(self.prompts)) * self.num_seeds


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings that every cell of a run shares.

    Attributes:
        pairs: what cells name.
        num_repeats: timed generations of each cell and of each of its baselines.
        budget: below it a cell is degraded.
        is_at_once: every cell shows all prompts; otherwise as many as its verdict needs.
        is_sharing: baselines are run once and common steps are not computed again; ``False`` is the baseline of that.
        runs_refused: what is declared incompatible is run all the same.
        num_threads: of torch in each worker; ``None`` leaves it alone.
        cell_timeout_s: longest time between two messages of a worker (over a cell's videos, say, or one timed
            generation), after which its cell is given up; ``None`` waits for ever.
        memory_limit_mb: address space of a worker beyond what it has when its pairs are loaded; ``None`` sets none.
        timing_lock: name of a lock that workers of one machine hold while they time; ``None`` where one works alone.
        num_shown: prompts whose videos are kept; the figures are over all of them.
        plugins: plugin objects beside the installed ones, as ``"module:attribute"`` of a class to be called.
    """

    pairs: tuple[PairJob, ...]
    num_repeats: int
    budget: QualityBudget = field(default_factory=QualityBudget)
    is_at_once: bool = False
    is_sharing: bool = True
    runs_refused: bool = False
    num_threads: int | None = None
    cell_timeout_s: float | None = None
    memory_limit_mb: int | None = None
    timing_lock: str | None = None
    num_shown: int = 3
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Cells of one pair: every schedule of one stack, which share steps, and of some more, which share baselines.

    Whoever hands out batches may split one with :meth:`without` when a worker was lost over one of its cells; results
    do not depend on how cells are divided, except for how often work is repeated.
    """

    pair: str
    cells: tuple[CellSpec, ...]

    def without(self, ids: Collection[str]) -> Batch | None:
        """The cells that are left; ``None`` if none is."""
        left = tuple(cell for cell in self.cells if cell.id not in ids)
        return dataclasses.replace(self, cells=left) if left else None


@dataclass(frozen=True)
class Began:
    """A worker begins something; when it is lost, ``cell`` is the one to blame (``None``: the pair's baselines).

    ``is_waiting``: it waits for its turn to time, which counts against no limit.
    """

    pair: str
    cell: str | None
    what: str
    is_waiting: bool = False


@dataclass(frozen=True)
class FinishedCell:
    """A finished cell, with its files.

    Attributes:
        result: with every figure; its ``videos`` name the files below.
        files: relative path to content, to be written into the folder of the run.
    """

    result: CellResult
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Baselines:
    """A pair and what its denoisers do alone; every worker says this before its first cell of the pair.

    Attributes:
        record: of the pair.
        files: as in :class:`FinishedCell`.
        num_forwards: denoiser forwards that it took, one for each video of a batch; ``seconds`` the time.
    """

    record: PairRecord
    files: Mapping[str, bytes]
    num_forwards: int
    seconds: float


Message = Began | Baselines | FinishedCell


def lost_cell(pair: str, cell: CellSpec, failure: str, reason: str) -> FinishedCell:
    """The outcome of a cell whose worker was lost over it.

    Args:
        pair: its pair's name.
        cell: the cell.
        failure: ``"crashed"``, ``"hung"`` or ``"out_of_memory"``.
        reason: one sentence.
    """
    result = CellResult(id=cell.id, pair=pair, schedule=cell.schedule.text, adapters=list(cell.stack))
    result.observed, result.failure, result.reasons = "broken", failure, [reason]
    return FinishedCell(result)


def make_batches(pair: str, cells: Sequence[CellSpec], num_stacks: int = 1) -> list[Batch]:
    """The cells of a pair as batches, in the order of their stacks.

    Args:
        pair: its name.
        cells: to be measured.
        num_stacks: in a batch. The baselines are timed once in a round for all of them, so more stacks take less time
            in all, and each has them further away.
    """
    stacks = list(dict.fromkeys(cell.stack for cell in cells))
    groups = [stacks[start : start + num_stacks] for start in range(0, len(stacks), num_stacks)]
    return [Batch(pair, tuple(cell for stack in group for cell in cells if cell.stack == stack)) for group in groups]
