"""Confirm the headline and the front on prompts and seeds that chose nothing.

The best of many cells looks better than it is, by what chance added to it where it was chosen. So the fastest cells
that pass, and those on the front, are measured once more on others, at a fixed number of prompts; what does not hold
there is dropped, and the next one is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..measuring.jobs import Baselines, Began, FinishedCell, PairJob, RunSettings, make_batches
from ..report.media import on_front
from ..results.cell_result import CellResult, Confirmation
from ..results.cells import CellSpec
from ..results.matrix_results import HeadlineRecord, Matrix, PairRecord
from .executors import Executor

NUM_PROMPTS = 48
"""Prompts of every cell that is confirmed, looked at once."""

NUM_TRIED = 4
"""Candidates for the headline that are measured together, and stacks in a batch of them."""


def confirm(
    executor: Executor, settings: RunSettings, matrix: Matrix, specs: Mapping[tuple[str, str], CellSpec]
) -> Iterator[Began]:
    """Measure candidates and front again, and write down what holds; nothing where the run was a screening.

    Args:
        executor: runs them, in workers of their own.
        settings: of the run that chose them.
        matrix: complete; the cells' ``confirmation`` and the pairs' ``headline`` and ``front`` are filled in.
        specs: by pair and id of the cell.
    """
    if matrix.is_screening:
        return
    jobs = tuple(_other_prompts(job) for job in settings.pairs)
    settings = replace(settings, pairs=jobs, is_at_once=True, num_shown=0)
    for pair in matrix.run.pairs:
        pair.headline = None  # of a run that is resumed, perhaps with more cells
    while True:
        found = {(cell.pair, cell.id): cell for pair in matrix.run.pairs for cell in _wanted(pair, _of(matrix, pair))}
        if found:
            yield from _measure(executor, settings, matrix, found, specs)
        for pair in matrix.run.pairs:
            cells = _of(matrix, pair)
            if any(cell.confirmation is not None for cell in cells):
                conclude(pair, cells)
        if not found:
            return


def _measure(
    executor: Executor,
    settings: RunSettings,
    matrix: Matrix,
    found: Mapping[tuple[str, str], CellResult],
    specs: Mapping[tuple[str, str], CellSpec],
) -> Iterator[Began]:
    batches = [
        batch
        for pair in matrix.run.pairs
        for batch in make_batches(pair.name, [specs[key] for key in found if key[0] == pair.name], NUM_TRIED)
    ]
    for message in executor.run(settings, batches):
        if isinstance(message, Began):
            yield replace(message, what=f"confirming, {message.what}")
        elif isinstance(message, FinishedCell):
            result = message.result
            found[result.pair, result.id].confirmation = _figures(result)
            matrix.run.work.num_forwards += result.num_forwards_run
            matrix.run.work.num_forwards_timed += result.num_forwards_timed
            alone = max(result.num_forwards_alone, result.num_forwards_run)
            matrix.run.work.num_forwards_without_sharing += alone
        elif isinstance(message, Baselines):
            matrix.run.work.num_forwards += message.num_forwards


def candidates(cells: Sequence[CellResult]) -> list[CellResult]:
    """Cells that pass and are faster than large-only, the fastest first."""
    passing = [
        cell
        for cell in cells
        if cell.observed == "pass" and not cell.is_identical_to_large and (cell.speedup_over_large or 0.0) > 1.0
    ]
    return sorted(passing, key=lambda cell: -(cell.speedup_over_large or 0.0))


def _wanted(pair: PairRecord, cells: Sequence[CellResult]) -> list[CellResult]:
    """Cells to measure next: at first the front and the fastest candidates, then more of these until one holds."""
    fastest = candidates(cells)
    if pair.headline is not None and pair.headline.cell is None:
        return [cell for cell in fastest if cell.confirmation is None][:NUM_TRIED]
    front = [cell for cell in on_front(list(cells)) if not cell.is_identical_to_large]
    wanted = [*fastest[:NUM_TRIED], *front] if pair.headline is None else []
    return [cell for cell in cells if cell.confirmation is None and cell in wanted]


def conclude(pair: PairRecord, cells: Sequence[CellResult]) -> None:
    """Write down the headline and the front, as far as the cells were confirmed."""
    tried = [cell for cell in candidates(cells) if cell.confirmation is not None]
    held = next((cell for cell in tried if cell.confirmation and cell.confirmation.is_within_budget), None)
    dropped = tried if held is None else tried[: tried.index(held)]
    pair.headline = HeadlineRecord(cell=held.id if held else None, dropped=[cell.id for cell in dropped])
    confirmed = {cell.id: cell.confirmation for cell in cells if cell.confirmation is not None}
    again = [
        replace(cell, speedup_over_large=it.speedup_over_large, psnr_db=it.psnr_db)
        for cell in cells
        if (it := confirmed.get(cell.id)) is not None
    ]
    best = on_front(again)
    pair.front = [cell.id for cell in reversed(best)]
    for name, confirmation in confirmed.items():
        confirmation.is_on_front = name in pair.front


def _figures(result: CellResult) -> Confirmation:
    return Confirmation(
        num_prompts=result.num_prompts,
        psnr_db=result.psnr_db,
        psnr_db_interval=result.psnr_db_interval,
        ssim=result.ssim,
        ssim_interval=result.ssim_interval,
        alignment_kept=result.alignment_kept,
        alignment_kept_interval=result.alignment_kept_interval,
        speedup_over_large=result.speedup_over_large,
        speedup_over_large_interval=result.speedup_over_large_interval,
        num_timed=result.num_timed,
        is_within_budget=result.observed == "pass",
    )


def _other_prompts(job: PairJob) -> PairJob:
    """Move a job to other prompts where the pair has them, and in any case on other seeds."""
    num_before = job.num_videos
    if job.prompts is not None:
        return replace(job, seed=job.seed + num_before)
    return replace(
        job,
        first_prompt=job.num_prompts,
        num_prompts=min(NUM_PROMPTS, job.num_prompts),
        num_seeds=1,
        seed=job.seed + num_before,
    )


def _of(matrix: Matrix, pair: PairRecord) -> list[CellResult]:
    return [cell for cell in matrix.cells if cell.pair == pair.name]
