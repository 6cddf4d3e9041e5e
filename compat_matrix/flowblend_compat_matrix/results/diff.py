"""Difference of two runs: verdicts that changed, and figures that moved by more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from flowblend_plugins.types import JsonObject

from .matrix_results import CellResult, Matrix

_MIN_SPEED_CHANGE = 0.05
"""Two runs at different moments differ by a few percent whatever the rounds within each say."""

_MIN_PSNR_CHANGE_DB = 0.1
_MIN_SSIM_CHANGE = 0.002
_MIN_ALIGNMENT_CHANGE = 0.01
_COUNTS = ("num_large_forwards", "num_small_forwards", "num_reused_forwards", "num_predicted_forwards")


@dataclass(frozen=True)
class Change:
    """Something about one cell that is no longer what it was.

    Attributes:
        pair, cell: which.
        what: ``"observed"``, ``"declared"`` or the name of a figure.
        old, new: values.
        noise: how far the figure may move by chance; ``None`` for what does not depend on it.
    """

    pair: str
    cell: str
    what: str
    old: object
    new: object
    noise: float | None = None

    @property
    def is_verdict(self) -> bool:
        return self.what in ("observed", "declared")


@dataclass
class MatrixDiff:
    """Everything that changed between two runs.

    Attributes:
        changes: of cells that are in both.
        added, removed: (pair, cell id) of cells that are in one only.
        environment: what the runs were made with, where it differs: name to (old, new).
        num_compared: cells that are in both.
    """

    changes: list[Change] = field(default_factory=list)
    added: list[tuple[str, str]] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, tuple[object, object]] = field(default_factory=dict)
    num_compared: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no verdict and no figure changed and the cells are the same; the environment may differ."""
        return not (self.changes or self.added or self.removed)

    def to_dict(self) -> JsonObject:
        """Values as JSON takes them."""
        return asdict(self)


def compare_matrices(old: Matrix, new: Matrix) -> MatrixDiff:
    """Compare two runs cell by cell.

    Speed-ups have moved where the ranges over the rounds of both runs lie apart, and by 5 % at least. Fidelity and
    alignment of the same prompts at the same seeds have moved where they differ by more than rounding does; of others,
    by more than twice the standard error that their spread over the videos gives. Counted things (forwards, FLOPs) have
    moved where they differ at all.
    """
    before, after = ({(cell.pair, cell.id): cell for cell in matrix.cells} for matrix in (old, new))
    found = MatrixDiff(
        added=[key for key in after if key not in before],
        removed=[key for key in before if key not in after],
        environment=_environment_changes(old.environment, new.environment),
    )
    for key, cell in before.items():
        if key in after:
            found.num_compared += 1
            found.changes += _cell_changes(cell, after[key], _num_drawn(old, new, cell.pair))
    return found


def _num_drawn(old: Matrix, new: Matrix, pair: str) -> int | None:
    """Number of videos that each figure is a mean of; ``None`` where both runs made the same ones."""
    records = [record for matrix in (old, new) for record in matrix.run.pairs if record.name == pair]
    first, last = records[0], records[-1]
    if (first.prompts, first.seeds, first.call) == (last.prompts, last.seeds, last.call):
        return None
    return min(len(first.prompts), len(last.prompts))


def _environment_changes(old: JsonObject, new: JsonObject) -> dict[str, tuple[object, object]]:
    names = [name for name in dict.fromkeys([*old, *new]) if name not in ("date", "load_average")]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _cell_changes(old: CellResult, new: CellResult, num_drawn: int | None) -> Iterator[Change]:
    def change(what: str, noise: float | None = None) -> Change:
        return Change(old.pair, old.id, what, getattr(old, what), getattr(new, what), noise)

    for what in ("observed", "declared", *_COUNTS):
        if getattr(old, what) != getattr(new, what):
            yield change(what)
    for what in ("flops_fraction_linear", "flops_fraction_full"):
        if _differ(getattr(old, what), getattr(new, what), 1e-6):
            yield change(what, 1e-6)
    if old.speedup_over_large is not None and new.speedup_over_large is not None:
        noise = _noise_of_speed(old, new)
        if _differ(old.speedup_over_large, new.speedup_over_large, noise):
            yield change("speedup_over_large", noise)
    for what, std, least in (
        ("psnr_db", "psnr_db_std", _MIN_PSNR_CHANGE_DB),
        ("ssim", "ssim_std", _MIN_SSIM_CHANGE),
        ("prompt_alignment", None, _MIN_ALIGNMENT_CHANGE),
    ):
        noise = least
        if num_drawn is not None:
            stds = [getattr(cell, std) or 0.0 for cell in (old, new)] if std else _binomial(old, new)
            noise = max(least, 2.0 * math.hypot(*stds) / math.sqrt(num_drawn))
        if _differ(getattr(old, what), getattr(new, what), noise):
            yield change(what, noise)


def _binomial(old: CellResult, new: CellResult) -> list[float]:
    """The spread over prompts of a share of right attributes, where only the share is known."""
    shares = [share for share in (old.prompt_alignment, new.prompt_alignment) if share is not None]
    return [math.sqrt(max(0.0, share * (1.0 - share))) for share in shares]


def _noise_of_speed(old: CellResult, new: CellResult) -> float:
    """The distance of the medians at which the two ranges over the rounds just touch."""
    assert old.speedup_over_large is not None
    assert new.speedup_over_large is not None
    slower, faster = sorted((old, new), key=lambda cell: cell.speedup_over_large or 0.0)
    reach = 0.0
    for cell, end in ((slower, 1), (faster, 0)):
        if cell.speedup_over_large_range is not None and cell.speedup_over_large is not None:
            reach += abs(cell.speedup_over_large_range[end] - cell.speedup_over_large)
    return max(reach, _MIN_SPEED_CHANGE * old.speedup_over_large)


def _differ(old: float | None, new: float | None, noise: float) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) > noise
