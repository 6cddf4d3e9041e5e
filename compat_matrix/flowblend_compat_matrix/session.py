"""A whole matrix run: measuring cell after cell, showing how far it is, and keeping what is finished."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowblend_plugins.schedule import Stage, StageSchedule

from .bench import Bench
from .cells import CellSpec
from .folder import write_matrix, write_report, write_videos
from .results import Matrix
from .runner import Baseline, MatrixRunner, num_baseline_generations, num_generations


def measure_matrix(
    runner: MatrixRunner, cells: Sequence[CellSpec], matrix: Matrix, folder: Path, progress: ProgressBar
) -> Path:
    """Measure all cells into ``matrix`` and the folder; gives the path of the report.

    ``matrix.json`` is written anew after every cell, so an interruption loses the cell in hand alone: what is finished
    is reported before the ``KeyboardInterrupt`` goes on.
    """
    try:
        baseline = runner.measure_baseline()
        progress.finish_stage()
        _describe_baseline(baseline, matrix)
        if not any(spec.is_large_alone for spec in cells):
            baseline.record.videos = write_videos(folder, "large-only", baseline.videos)
        for spec in cells:
            measured = runner.measure(spec, baseline)
            if measured.videos is not None:
                measured.result.videos = write_videos(folder, spec.file_stem, measured.videos)
            matrix.cells.append(measured.result)
            write_matrix(folder, matrix)
            progress.finish_stage()
    except KeyboardInterrupt:
        if matrix.cells:
            write_report(folder, matrix)
        raise
    return write_report(folder, matrix)


def _describe_baseline(baseline: Baseline, matrix: Matrix) -> None:
    run = matrix.run.pairs[0]
    run.large_only = baseline.record
    run.divergence = [found._asdict() for found in baseline.divergences]
    num_steps = len({found.step_index for found in baseline.divergences})
    stages = [one.stage for one in StageSchedule.named("LSL", run.early, run.late).assignments(num_steps)]
    run.boundary_steps = [
        next((step for step, stage in enumerate(stages) if stage in later), num_steps)
        for later in ({Stage.INTERMEDIATE, Stage.LATE}, {Stage.LATE})
    ]


class ProgressBar:
    """A bar in pipeline calls, on standard error.

    Args:
        cells: what will be measured.
        num_repeats: as in :class:`MatrixRunner`.
        num_prompt_batches: pipeline calls that make one video for every prompt.
        quiet: show nothing.
    """

    def __init__(self, cells: Sequence[CellSpec], num_repeats: int, num_prompt_batches: int, quiet: bool) -> None:
        self._stages = [num_baseline_generations(num_prompt_batches)]
        self._stages += [num_generations(spec, num_repeats, num_prompt_batches) for spec in cells]
        self._quiet = quiet
        self._finished_stages = 0

    @contextlib.contextmanager
    def shown(self, bench: Bench) -> Iterator[None]:
        """Show the bar while the bench works."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns, console=Console(stderr=True), disable=self._quiet) as self._bar:
            self._task = self._bar.add_task("", total=sum(self._stages))
            self._started = 0
            bench.tick = self._begin
            yield

    def _begin(self, what: str) -> None:
        self._bar.update(self._task, completed=self._started, description=what)
        self._started += 1

    def finish_stage(self) -> None:
        """The baseline or a cell is done, however many calls it took."""
        self._finished_stages += 1
        self._started = sum(self._stages[: self._finished_stages])
        self._bar.update(self._task, completed=self._started, description="")
