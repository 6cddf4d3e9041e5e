"""Results of a matrix run, as ``matrix.json`` keeps them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.types import JsonObject

from .cell_result import BaselineResult, CellResult, Confirmation
from .intervals import CONFIDENCE

__all__ = [
    "API_VERSION",
    "FILE_NAME",
    "BaselineResult",
    "CellResult",
    "Confirmation",
    "HeadlineRecord",
    "Matrix",
    "PairRecord",
    "RunRecord",
    "WorkRecord",
    "read_matrix",
]

API_VERSION = 1
FILE_NAME = "matrix.json"

_ALWAYS = frozenset({"id", "pair", "schedule", "adapters"})
_NOT_COMPACT = frozenset(
    {"declared_reasons", "forwards", "timeline", "videos", "seconds", "seconds_for_videos", "num_forwards_run"}
    | {"num_forwards_timed", "num_forwards_alone", "peak_memory_of"}
)


@dataclass(kw_only=True)
class HeadlineRecord:
    """The fastest cell that other prompts and seeds confirm to be within the budget.

    Attributes:
        cell: its id; ``None`` where no candidate was confirmed.
        dropped: ids of faster cells that passed on the prompts that chose them and were not confirmed, fastest first.
    """

    cell: str | None = None
    dropped: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class PairRecord:
    """One pair of the run, what it was asked for, and its baselines.

    Attributes:
        name: as cells name it; ``pipeline`` the class of its pipeline.
        makes: ``"videos"`` or ``"stills"``; a still is a video of one frame to every metric.
        prompts, seeds: video ``i`` shows prompt ``i`` from the noise of seed ``i``; the first ones are timed.
        call: keyword arguments of every pipeline call.
        early, late: fractions; ``boundary_steps`` the first step of the intermediate and of the late stage, from 0.
        judge: who says prompt alignment and the Frechet distance; ``None`` where nobody can.
        fps: of the videos; ``None`` of stills.
        divergence: a row for every step and branch; see ``calibration.divergence.Divergence``.
        large_only, small_only: either denoiser alone.
        spreads: standard deviations of ``psnr_db`` and ``ssim`` over the prompts of a pilot, LSL alone.
        headline: as confirmed; ``None`` where nothing was confirmed (a screening, or an interrupted run).
        front: ids of the cells on the front as confirmed, fastest first.
    """

    name: str
    pipeline: str
    makes: str
    prompts: list[str]
    seeds: list[int]
    call: JsonObject
    early: float
    late: float
    boundary_steps: list[int] | None = None
    judge: str | None = None
    fps: float | None = None
    divergence: list[JsonObject] = field(default_factory=list)
    large_only: BaselineResult = field(default_factory=BaselineResult)
    small_only: BaselineResult = field(default_factory=BaselineResult)
    spreads: dict[str, float] = field(default_factory=dict)
    headline: HeadlineRecord | None = None
    front: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class WorkRecord:
    """Cost of the run, and of the same run with nothing shared.

    A forward is one denoiser call for one video: a call on a batch of eight is eight forwards.

    Attributes:
        num_forwards: computed in all, timing and baselines included.
        num_forwards_timed: those of them that were made for timing, which shares nothing.
        num_forwards_without_sharing: had every cell run its own baselines for its own seeds, and every step.
        seconds: the whole run, by the clock.
        seconds_in_workers: summed over the workers.
        seconds_without_sharing: an estimate of ``seconds_in_workers``: the forwards that were saved, at what the
            forwards for videos took.
    """

    num_forwards: int = 0
    num_forwards_timed: int = 0
    num_forwards_without_sharing: int = 0
    seconds: float = 0.0
    seconds_in_workers: float = 0.0
    seconds_without_sharing: float | None = None


@dataclass(kw_only=True)
class RunRecord:
    """Settings that were asked of the whole run.

    Attributes:
        command: as typed.
        pairs: each with its own prompts, call and baselines.
        schedules, stacks: what was crossed, as texts.
        depth: adapters in the largest stack that was made up from the registered ones; 0 where none was.
        num_repeats: timed generations of each cell.
        budget: bounds below which a cell is degraded.
        num_planned: cells that were asked for; fewer are there when the run was interrupted.
        executor: what ran the cells, in words, with the number of workers.
        is_sharing: whether cells shared baselines and common steps.
        runs_refused: whether cells that are declared incompatible were run, so that the declarations are audited.
        looks: numbers of prompts at which a cell may be concluded, the last is the most.
        confidence: of every interval, over all looks together.
        families: which kind of technique each adapter of the stacks is, by its name.
        work: what it cost.
    """

    command: str
    pairs: list[PairRecord]
    schedules: list[str]
    stacks: list[list[str]]
    depth: int
    num_repeats: int
    budget: dict[str, float]
    num_planned: int
    executor: str
    is_sharing: bool
    runs_refused: bool = False
    looks: list[int] = field(default_factory=list)
    confidence: float = CONFIDENCE
    families: dict[str, str] = field(default_factory=dict)
    work: WorkRecord = field(default_factory=WorkRecord)


@dataclass(kw_only=True)
class Matrix:
    """Results of a whole run, and its environment."""

    environment: JsonObject
    run: RunRecord
    cells: list[CellResult] = field(default_factory=list)

    def pair(self, name: str) -> PairRecord:
        """The record of a pair that cells name."""
        return next(pair for pair in self.run.pairs if pair.name == name)

    @property
    def is_screening(self) -> bool:
        """Whether so few prompts were asked for that no verdict is certain."""
        return bool(self.run.looks) and len(self.run.looks) == 1

    @property
    def is_complete(self) -> bool:
        return len(self.cells) == self.run.num_planned

    def to_dict(self) -> JsonObject:
        """Values as JSON takes them."""
        return {"api_version": API_VERSION, **dataclasses.asdict(self)}

    def to_compact_json(self) -> str:
        """Every cell with its intervals in one line each, without what repeats itself or needs the videos.

        Numbers keep five digits. :func:`read_matrix` reads it as it reads the whole: what is left out has its default.
        """
        value = self.to_dict()
        value["cells"] = []
        head = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        blank = dataclasses.asdict(CellResult(id="", pair="", schedule="", adapters=[]))
        lines = [
            json.dumps(
                {
                    name: _rounded(value)
                    for name, value in dataclasses.asdict(cell).items()
                    if name in _ALWAYS or (value != blank[name] and name not in _NOT_COMPACT)
                },
                ensure_ascii=False,
                allow_nan=False,
                separators=(",", ":"),
            )
            for cell in self.cells
        ]
        return head.removesuffix("]}") + "\n" + ",\n".join(lines) + "\n]}\n"

    @classmethod
    def from_dict(cls, value: JsonObject) -> Matrix:
        """Read the values that :meth:`to_dict` gave.

        Raises:
            FlowBlendError: another version, or fields that are missing or unknown.
        """
        version = value.get("api_version") if isinstance(value, dict) else None
        if version != API_VERSION:
            raise FlowBlendError(
                f"these results have api_version {version!r}, and this flowblend reads {API_VERSION}. Run "
                "`flowblend matrix run` again, or use the version that wrote them."
            )
        try:
            run = dict(value["run"])
            run["pairs"] = [_read_pair(pair) for pair in run["pairs"]]
            run["work"] = WorkRecord(**run["work"])
            return cls(
                environment=dict(value["environment"]),
                run=RunRecord(**run),
                cells=[_read_cell(cell) for cell in value["cells"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FlowBlendError(
                f"these results are damaged: {type(error).__name__}: {error}. Run `flowblend matrix run` again."
            ) from error


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [_rounded(one) for one in cast("list[object]", value)]
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in cast("dict[str, object]", value).items()}
    return value


def _read_pair(value: JsonObject) -> PairRecord:
    parts: JsonObject = {name: BaselineResult(**value[name]) for name in ("large_only", "small_only")}
    if value.get("headline"):
        parts["headline"] = HeadlineRecord(**value["headline"])
    return PairRecord(**(value | parts))


def _read_cell(value: JsonObject) -> CellResult:
    cell = CellResult(**value)
    if value.get("confirmation"):
        cell.confirmation = Confirmation(**value["confirmation"])
    return cell


def read_matrix(folder: Path) -> Matrix:
    """The results in a folder that ``flowblend matrix run`` wrote, or in a file.

    Raises:
        FlowBlendError: there are none, or they cannot be read.
    """
    path = folder if folder.is_file() else folder / FILE_NAME
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FlowBlendError(
            f"{path} does not exist. Give the folder that `flowblend matrix run --out DIR` wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise FlowBlendError(f"{path} cannot be read: {error}. Run `flowblend matrix run` again.") from error
    return Matrix.from_dict(value)
