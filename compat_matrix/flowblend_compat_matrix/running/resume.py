"""Going on with a run that was interrupted, where what was asked is the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from flowblend_plugins.errors import UsageError
from flowblend_plugins.types import JsonObject

from ..measuring.jobs import Batch, RunSettings
from ..results.matrix_results import FILE_NAME, Matrix, read_matrix
from .staleness import changes_for_all, stale_cells


def resume(
    folder: Path, fresh: Matrix, settings: RunSettings, planned: Collection[tuple[str, str]]
) -> tuple[Matrix, str | None]:
    """The unfinished results in a folder, with what is asked now on top; ``fresh`` if there are none yet.

    Cells whose software or machine has changed since are stale: they are left out, so that they are measured again.

    Args:
        folder: of the earlier run.
        fresh: what is asked now, with nothing measured yet.
        settings: of the run.
        planned: pair and id of every cell that is asked for now.

    Returns:
        The matrix to go on with, and what is measured again and why, in words.

    Raises:
        UsageError: the earlier results were made with other settings, which are named.
    """
    if not (folder / FILE_NAME).is_file():
        return fresh, None
    earlier = read_matrix(folder)
    if changes := changes_for_all(earlier.environment, fresh.environment, with_machine=True):
        return fresh, f"all {len(earlier.cells)} finished cells are stale and measured again: {'; '.join(changes)}."
    stale = stale_cells(earlier, fresh.environment)
    kept = [cell for cell in earlier.cells if (cell.pair, cell.id) not in stale]
    changes = [*_setting_changes(earlier, fresh, settings)]
    dropped = [cell.id for cell in kept if (cell.pair, cell.id) not in planned]
    if dropped:
        changes.append(f"{len(dropped)} finished cells are no longer asked for ({_short(dropped[0])} among them)")
    if changes:
        raise UsageError(
            f"--resume: the results in {folder} were made otherwise: {'; '.join(changes)}. Ask for the same, or leave "
            "out --resume to begin again."
        )
    fresh.run.pairs, fresh.run.work, fresh.cells = earlier.run.pairs, earlier.run.work, kept
    if not stale:
        return fresh, None
    why = "; ".join(dict.fromkeys(change for changes in stale.values() for change in changes))
    return fresh, f"{len(stale)} of {len(earlier.cells)} finished cells are stale and measured again: {why}."


def _setting_changes(earlier: Matrix, fresh: Matrix, settings: RunSettings) -> Iterator[str]:
    for what in ("num_repeats", "budget", "is_sharing", "runs_refused"):
        yield from _changes("", {what: getattr(earlier.run, what)}, {what: getattr(fresh.run, what)})
    asked = {job.name: job for job in settings.pairs}
    for pair in earlier.run.pairs:
        if pair.name not in asked:
            yield f"pair {pair.name!r} is no longer asked for"
            continue
        job = asked[pair.name]
        before: JsonObject = {"call": pair.call, "early": pair.early, "late": pair.late, "seed": pair.seeds[0]}
        now: JsonObject = {"call": dict(job.call), "early": job.early, "late": job.late, "seed": job.seed}
        if job.prompts is not None:
            before["prompts"], now["prompts"] = pair.prompts, list(job.prompts * job.num_seeds)
        else:
            before["number of videos"] = len(pair.prompts)
            now["number of videos"] = job.num_videos
        yield from _changes(f"{pair.name}: ", before, now)


def unfinished(batches: Sequence[Batch], matrix: Matrix) -> list[Batch]:
    """Cells of the batches that are not in the results yet."""
    left = (batch.without({cell.id for cell in matrix.cells if cell.pair == batch.pair}) for batch in batches)
    return [batch for batch in left if batch is not None]


def _changes(where: str, before: JsonObject, now: JsonObject) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{where}{name} was {_short(before.get(name))} and is now {_short(now.get(name))}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
