"""Plan of a matrix run, from its options and before anything is loaded: a job for each pair, and its cells."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from flowblend_plugins.cli.options import find_preset, read_schedule
from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import FlowblendPluginManager, make_adapters, pairs_by_name
from flowblend_plugins.pairs.placement import Placement
from flowblend_plugins.pairs.preset import PairPreset
from flowblend_plugins.pairs.sources import refuse_absent
from flowblend_plugins.schedule import DEFAULT_EARLY, DEFAULT_LATE, StageSchedule

from ..measuring.jobs import Batch, PairJob, make_batches
from ..measuring.prompts import EMBEDDED, check_num_prompts
from ..results.cells import CellSpec, Stack, parse_stack, plan_cells
from ..results.expectations import Expectation, read_expectations, shipped_expectations
from ..results.intervals import looks_up_to
from ..running.planning import (
    all_stacks,
    check_depth,
    combinations,
    left_out,
    num_threads_each,
    suggested_stacks,
)

if TYPE_CHECKING:
    from .options import CallOptions, CellOptions

MANY_CELLS = 200


STACKS_TOGETHER, STACKS_TOGETHER_OF_MANY = 1, 8
"""Stacks in a batch, for up to ``MANY_CELLS`` and for more."""


class CalledPair(Protocol):
    """A pair that is to be run, or was."""

    @property
    def name(self) -> str: ...
    @property
    def call(self) -> Mapping[str, object]: ...
    @property
    def early(self) -> float: ...
    @property
    def late(self) -> float: ...


@dataclass(frozen=True)
class Plan:
    """Jobs of a run, one for each pair, and the cells of each by the name of its pair."""

    jobs: tuple[PairJob, ...]
    cells: Mapping[str, Sequence[CellSpec]]
    stacks: Sequence[Stack]
    num_repeats: int
    stacks_together: int

    @property
    def num_cells(self) -> int:
        return sum(map(len, self.cells.values()))

    @property
    def specs(self) -> dict[tuple[str, str], CellSpec]:
        """Every cell by its pair and id."""
        return {(name, cell.id): cell for name, cells in self.cells.items() for cell in cells}

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of prompts at which cells may be concluded, on the pair that shows most."""
        return looks_up_to(max(job.num_videos for job in self.jobs))

    def batches(self) -> list[Batch]:
        """All cells, in the batches that workers are given."""
        return [one for name, cells in self.cells.items() for one in make_batches(name, cells, self.stacks_together)]

    def num_threads(self, num_workers: int) -> int | None:
        """Torch threads of each worker; the embedded pairs are so small that two threads wait for each other."""
        is_tiny = all(job.preset in EMBEDDED for job in self.jobs)
        return num_threads_each(num_workers, os.cpu_count(), is_tiny, os.environ.get("OMP_NUM_THREADS"))


def plan_run(
    manager: FlowblendPluginManager, which: CellOptions, calls: CallOptions, placement: Placement | None = None
) -> Plan:
    """Read the options; a wrong name or option is told before anything is loaded.

    Raises:
        UsageError: there is no such pair, or it cannot be measured; stacks cannot be made up.
        AdapterError: there is no such adapter, or it has no such option.
        ScheduleError: a schedule cannot be read, or does not add up to the steps.
    """
    stacks = _read_stacks(manager, which)
    presets = {name: find_preset(manager, name, which.large) for name in which.pairs}
    schedules = {
        name: [read_schedule(text, which.early, which.late, preset) for text in which.schedules]
        for name, preset in presets.items()
    }
    cells = {name: plan_cells(its, stacks) for name, its in schedules.items()}
    is_large = sum(map(len, cells.values())) > MANY_CELLS
    jobs = {name: pair_job(preset, name, which, calls, placement) for name, preset in presets.items()}
    if not stacks:
        for name, job in jobs.items():
            _check_steps(schedules[name], job)
    by_job = {jobs[name].name: its for name, its in cells.items()}
    together = STACKS_TOGETHER_OF_MANY if is_large else STACKS_TOGETHER
    return Plan(tuple(jobs.values()), by_job, stacks, calls.num_repeats, together)


def _read_stacks(manager: FlowblendPluginManager, which: CellOptions) -> list[Stack]:
    texts = [*(which.adapter or ())]
    texts += [text for family in which.family or () for text in suggested_stacks(manager, family)]
    if which.all_adapters:
        texts += all_stacks(manager)
        if names := left_out(manager):
            typer.echo(f"--all-adapters leaves out {', '.join(names)}: they suggest no setting.", err=True)
    stacks = [parse_stack(text) for text in texts]
    check_depth(which.depth, stacks)
    stacks = list(dict.fromkeys([*stacks, *combinations(stacks, which.depth)]))
    for stack in stacks:
        make_adapters(manager, stack)
    return stacks


def pair_job(
    preset: PairPreset | None,
    name: str,
    which: CellOptions,
    calls: CallOptions,
    placement: Placement | None = None,
) -> PairJob:
    """The job of one pair; what the options leave open is the pair's own.

    Raises:
        UsageError: it has no prompts of its own, or fewer than are asked for; or it cannot be measured here.
    """
    if preset is not None and preset.experts:
        raise UsageError(
            f"--pair {name}: its large pipeline has further experts ({', '.join(preset.experts.values())}), and the "
            "matrix compares every cell with one large denoiser. `flowblend run` blends such a pair."
        )
    refuse_absent(which.large, which.small)
    num_prompts = 1 if calls.prompt is not None else check_num_prompts(preset, calls.prompts, calls.most_prompts)
    early, late = (preset.early, preset.late) if preset else (DEFAULT_EARLY, DEFAULT_LATE)
    return PairJob(
        name=preset.name if preset and which.small is None else f"{which.large or name} + {which.small}",
        preset=preset.name if preset else None,
        large=which.large,
        small=which.small,
        prompts=None if calls.prompt is None else (calls.prompt,),
        num_prompts=num_prompts,
        num_seeds=calls.seeds,
        seed=calls.seed,
        placement=placement,
        call=(dict(preset.call_defaults) if preset else {}) | calls.asked,
        asked=frozenset(calls.asked),
        early=early if which.early is None else which.early,
        late=late if which.late is None else which.late,
    )


def _check_steps(schedules: Iterable[StageSchedule], job: PairJob) -> None:
    """Raise ``ScheduleError`` now rather than in every cell where runs do not add up to the steps."""
    num_inference_steps = job.call.get("num_inference_steps")
    for one in schedules:
        if num_inference_steps is not None and not one.needs_sigmas:
            one.assignments(num_inference_steps)


def known_outcomes(
    manager: FlowblendPluginManager, pairs: Iterable[CalledPair], files: Sequence[Path] | None
) -> list[Expectation]:
    """The shipped expectations of pairs that are called as they are meant to be, then those of the files.

    Raises:
        UsageError: a file cannot be read, or is wrong.
    """
    presets = pairs_by_name(manager)
    at_own_point = [
        pair.name
        for pair in pairs
        if (preset := presets.get(pair.name)) is not None
        and (dict(preset.call_defaults), preset.early, preset.late) == (dict(pair.call), pair.early, pair.late)
    ]
    own = [entry for path in files or () for entry in read_expectations(path)]
    return [*shipped_expectations(at_own_point), *own]
