"""A whole matrix run: handing cells to an executor, showing how far it is, and keeping what is finished."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from ..measuring.jobs import Baselines, Batch, Began, FinishedCell, RunSettings
from ..results.cells import CellSpec
from ..results.expectations import Expectation, check_expectations
from ..results.matrix_results import CellResult, Matrix
from .confirming import confirm
from .executors import Executor
from .folder import write_files, write_matrix, write_report


def measure_matrix(
    executor: Executor,
    settings: RunSettings,
    batches: Sequence[Batch],
    matrix: Matrix,
    folder: Path,
    progress: ProgressBar,
    expectations: Sequence[Expectation] = (),
    specs: Mapping[tuple[str, str], CellSpec] | None = None,
) -> Path:
    """Measure all cells of ``batches`` into ``matrix`` and the folder; gives the path of the report.

    ``specs`` are all cells by pair and id, for those that are confirmed at the end; without it those of ``batches``.

    ``matrix.json`` is written as cells are finished, so an interruption loses only those in progress: what is finished
    is reported before the ``KeyboardInterrupt`` goes on.
    """
    keeper = _Keeper(matrix, folder, batches, expectations)
    messages = executor.run(settings, batches)
    try:
        with closing(messages):
            for message in messages:
                if isinstance(message, Began):
                    progress.show(message)
                elif isinstance(message, Baselines):
                    keeper.keep_baselines(message)
                else:
                    keeper.keep(message)
                    progress.advance(message.result)
        own = {(batch.pair, cell.id): cell for batch in batches for cell in batch.cells}
        for began in confirm(executor, settings, matrix, specs or own):
            progress.show(began)
    except KeyboardInterrupt:
        if matrix.cells:
            keeper.write()
            write_report(folder, matrix)
        raise
    keeper.write()
    return write_report(folder, matrix)


class _Keeper:
    """Puts what comes back where it belongs: the cells in their planned order, the files in the folder."""

    def __init__(
        self, matrix: Matrix, folder: Path, batches: Sequence[Batch], expectations: Sequence[Expectation]
    ) -> None:
        self._matrix, self._folder, self._expectations = matrix, folder, expectations
        for cell in matrix.cells:
            check_expectations(cell, expectations)
        planned = [(cell.pair, cell.id) for cell in matrix.cells]  # of the run that is resumed
        planned += [(batch.pair, cell.id) for batch in batches for cell in batch.cells]
        self._place = {key: number for number, key in enumerate(planned)}
        self._started = self._written = time.monotonic()
        self._seconds_before = matrix.run.work.seconds
        self._writing_takes = 0.0
        self._seconds_for_videos = self._num_forwards_for_videos = 0.0

    def keep_baselines(self, baselines: Baselines) -> None:
        run = self._matrix.run
        run.work.num_forwards += baselines.num_forwards
        run.work.seconds_in_workers += baselines.seconds
        if all(pair.name != baselines.record.name for pair in run.pairs):
            run.pairs.append(baselines.record)
            write_files(self._folder, baselines.files)

    def keep(self, cell: FinishedCell) -> None:
        result, work = cell.result, self._matrix.run.work
        write_files(self._folder, cell.files)
        check_expectations(result, self._expectations)
        self._matrix.cells.append(result)
        self._matrix.cells.sort(key=lambda cell: self._place[cell.pair, cell.id])
        work.num_forwards += result.num_forwards_run
        work.num_forwards_timed += result.num_forwards_timed
        work.num_forwards_without_sharing += max(result.num_forwards_alone, result.num_forwards_run)
        work.seconds_in_workers += result.seconds or 0.0
        self._seconds_for_videos += result.seconds_for_videos or 0.0
        self._num_forwards_for_videos += result.num_forwards_run - result.num_forwards_timed
        # Writing everything again for every one of a thousand cells would take longer than some of them.
        if len(self._matrix.cells) == 1 or time.monotonic() - self._written > 20.0 * self._writing_takes:
            self.write()

    def write(self) -> None:
        work, started = self._matrix.run.work, time.monotonic()
        work.seconds = self._seconds_before + started - self._started
        if self._matrix.run.is_sharing and self._num_forwards_for_videos:
            seconds_each = self._seconds_for_videos / self._num_forwards_for_videos
            saved = work.num_forwards_without_sharing - work.num_forwards
            work.seconds_without_sharing = work.seconds_in_workers + max(0, saved) * seconds_each
        if self._matrix.run.pairs:
            write_matrix(self._folder, self._matrix)
        self._written = time.monotonic()
        self._writing_takes = self._written - started


class ProgressBar:
    """A bar in cells with the remaining time, on standard error.

    Args:
        num_cells: what will be measured.
        num_finished: what a run that is resumed had finished.
        quiet: show nothing.
    """

    def __init__(self, num_cells: int, num_finished: int, quiet: bool) -> None:
        self._num_cells, self._num_finished, self._quiet = num_cells, num_finished, quiet

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar while the run lasts."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        # Cells of one stack come in together, so a short memory would say "no time left" at every batch.
        progress = Progress(*columns, console=Console(stderr=True), disable=self._quiet, speed_estimate_period=600.0)
        with progress as self._bar:
            self._task = self._bar.add_task("", total=self._num_cells, completed=self._num_finished)
            yield

    def show(self, began: Began) -> None:
        self._bar.update(self._task, description=f"{began.cell or began.pair}: {began.what}")

    def advance(self, result: CellResult) -> None:
        self._bar.update(self._task, advance=1, description=f"{result.id}: {result.observed}")
