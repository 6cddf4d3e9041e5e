"""Going on with a run that was interrupted: only where what was asked and the machine's software are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowblend_plugins.errors import UsageError

from .orders import Batch, RunSettings
from .results import FILE_NAME, Matrix, read_matrix

_MAY_DIFFER = {"date", "load_average"}


def resume(folder: Path, fresh: Matrix, settings: RunSettings) -> Matrix:
    """The unfinished results in a folder, with what is asked now on top; ``fresh`` if there are none yet.

    Raises:
        UsageError: they were made with other settings or in another environment, which are named.
    """
    if not (folder / FILE_NAME).is_file():
        return fresh
    earlier = read_matrix(folder)
    changes = [*_changes("", _software(earlier), _software(fresh))]
    for what in ("schedules", "stacks", "depth", "num_repeats", "budget", "is_sharing"):
        changes += _changes("", {what: getattr(earlier.run, what)}, {what: getattr(fresh.run, what)})
    asked = {order.name: order for order in settings.pairs}
    for pair in earlier.run.pairs:
        if pair.name not in asked:
            changes.append(f"pair {pair.name!r} is no longer asked for")
            continue
        order = asked[pair.name]
        before: dict[str, Any] = {"call": pair.call, "early": pair.early, "late": pair.late, "seed": pair.seeds[0]}
        now: dict[str, Any] = {"call": dict(order.call), "early": order.early, "late": order.late, "seed": order.seed}
        if order.prompts is not None:
            before["prompts"], now["prompts"] = pair.prompts, list(order.prompts * order.num_seeds)
        else:
            before["number of videos"] = len(pair.prompts)
            now["number of videos"] = order.num_prompts * order.num_seeds
        changes += _changes(f"{pair.name}: ", before, now)
    if changes:
        raise UsageError(
            f"--resume: the results in {folder} were made otherwise: {'; '.join(changes)}. Ask for the same, or leave "
            "out --resume to begin again."
        )
    for kept in ("pairs", "work"):
        setattr(fresh.run, kept, getattr(earlier.run, kept))
    fresh.cells = earlier.cells
    return fresh


def unfinished(batches: Sequence[Batch], matrix: Matrix) -> list[Batch]:
    """What of the batches is not in the results yet."""
    left = (batch.without({cell.id for cell in matrix.cells if cell.pair == batch.pair}) for batch in batches)
    return [batch for batch in left if batch is not None]


def _software(matrix: Matrix) -> dict[str, Any]:
    return {name: value for name, value in matrix.environment.items() if name not in _MAY_DIFFER}


def _changes(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{where}{name} was {_short(before.get(name))} and is now {_short(now.get(name))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
