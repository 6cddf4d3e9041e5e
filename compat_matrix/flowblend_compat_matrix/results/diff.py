"""Difference of two runs: verdicts that changed, and figures that moved by more than noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from flowblend_plugins.types import JsonObject

from .intervals import std_of_logs
from .matrix_results import CellResult, Matrix
from .verdicts import QUALITY_VERDICTS, Observed

_MIN_SPEED_CHANGE = 0.05
"""Two runs at different moments differ by a few percent whatever the rounds within each say."""

_ERROR = 0.05
"""Probability that any speed of a whole comparison is called changed by chance."""

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

    A verdict has changed unless one of the two is ``undecided`` or screened, which contradicts nothing of quality.
    Speed-ups have moved where both runs timed three rounds or more, by 5 % at least, and by more than chance moves any
    of all cells with probability 5 % (Bonferroni). Fidelity and alignment of the same prompts at the same seeds have
    moved where they differ by more than rounding does; of others, by more than twice the standard error that their
    spread over the videos gives. Counted things (forwards, FLOPs) have moved where they differ at all.
    """
    before, after = ({(cell.pair, cell.id): cell for cell in matrix.cells} for matrix in (old, new))
    found = MatrixDiff(
        added=[key for key in after if key not in before],
        removed=[key for key in before if key not in after],
        environment=_environment_changes(old.environment, new.environment),
    )
    both = [(cell, after[key]) for key, cell in before.items() if key in after]
    found.num_compared = len(both)
    speeds = _SpeedNoise([cell for cells in both for cell in cells])
    for one, other in both:
        found.changes += _cell_changes(one, other, _has_same_videos(old, new, one, other), speeds)
    return found


def _has_same_videos(old: Matrix, new: Matrix, one: CellResult, other: CellResult) -> bool:
    """Whether both runs made the same videos of a cell."""
    before, after = ([record for record in matrix.run.pairs if record.name == one.pair] for matrix in (old, new))
    shown = [
        (record.prompts[: cell.num_prompts or None], record.seeds[: cell.num_prompts or None], record.call)
        for records, cell in ((before, one), (after, other))
        for record in records
    ]
    return shown[0] == shown[-1]


class _SpeedNoise:
    """Chance movement of the speed-ups of two runs, read off the spread over the rounds of all their cells."""

    def __init__(self, cells: Sequence[CellResult]) -> None:
        stds = [_std_of_logs(cell) for cell in cells]
        self._usual = statistics.median([std for std in stds if std is not None] or [0.0])
        self._limit = statistics.NormalDist().inv_cdf(1.0 - _ERROR / max(1, len(cells)))

    def of(self, old: CellResult, new: CellResult) -> float | None:
        """The difference up to which nothing has changed; ``None`` where either has fewer than three rounds."""
        stds = [_std_of_logs(cell) for cell in (old, new)]
        if old.speedup_over_large is None or None in stds:
            return None
        # A cell's own few rounds may happen to agree, so its spread is never taken to be under the usual one.
        error = math.hypot(
            *(max(std or 0.0, self._usual) / cell.num_timed**0.5 for std, cell in zip(stds, (old, new), strict=True))
        )
        return old.speedup_over_large * max(_MIN_SPEED_CHANGE, math.expm1(self._limit * error))


def _std_of_logs(cell: CellResult) -> float | None:
    interval = cell.speedup_over_large_interval
    return None if interval is None else std_of_logs(interval, cell.num_timed)


def _is_contradicted(old: CellResult, new: CellResult) -> bool:
    """Whether two observed verdicts cannot both be right."""
    quality = {one.value for one in QUALITY_VERDICTS}
    if {old.observed, new.observed} <= quality and (old.is_screened or new.is_screened):
        return False
    return old.observed != new.observed and not (
        {old.observed, new.observed} <= quality and Observed.UNDECIDED.value in (old.observed, new.observed)
    )


def _environment_changes(old: JsonObject, new: JsonObject) -> dict[str, tuple[object, object]]:
    names = [name for name in dict.fromkeys([*old, *new]) if name not in ("date", "load_average")]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _cell_changes(old: CellResult, new: CellResult, is_same: bool, speeds: _SpeedNoise) -> Iterator[Change]:
    def change(what: str, noise: float | None = None) -> Change:
        return Change(old.pair, old.id, what, getattr(old, what), getattr(new, what), noise)

    if _is_contradicted(old, new):
        yield change("observed")
    for what in ("declared", *_COUNTS):
        if getattr(old, what) != getattr(new, what):
            yield change(what)
    for what in ("flops_fraction_linear", "flops_fraction_full"):
        if _differ(getattr(old, what), getattr(new, what), 1e-6):
            yield change(what, 1e-6)
    noise = speeds.of(old, new)
    if noise is not None and _differ(old.speedup_over_large, new.speedup_over_large, noise):
        yield change("speedup_over_large", noise)
    for what, std, least in (
        ("psnr_db", "psnr_db_std", _MIN_PSNR_CHANGE_DB),
        ("ssim", "ssim_std", _MIN_SSIM_CHANGE),
        ("prompt_alignment", None, _MIN_ALIGNMENT_CHANGE),
    ):
        noise = least
        if not is_same:
            stds = [getattr(cell, std) or 0.0 for cell in (old, new)] if std else _binomial(old, new)
            errors = (one / max(1, cell.num_prompts) ** 0.5 for one, cell in zip(stds, (old, new), strict=False))
            noise = max(least, 2.0 * math.hypot(*errors))
        if _differ(getattr(old, what), getattr(new, what), noise):
            yield change(what, noise)


def _binomial(old: CellResult, new: CellResult) -> list[float]:
    """The spread over prompts of a share of right attributes, where only the share is known."""
    shares = [share for share in (old.prompt_alignment, new.prompt_alignment) if share is not None]
    return [math.sqrt(max(0.0, share * (1.0 - share))) for share in shares]


def _differ(old: float | None, new: float | None, noise: float) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) > noise
