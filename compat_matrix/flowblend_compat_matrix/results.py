"""Results of a matrix run, as ``matrix.json`` keeps them.

Numbers that do not exist are ``null``, never 0: the PSNR of two equal videos is infinite, so ``psnr_db`` is ``null``
where ``is_identical_to_large`` is true, and everything is ``null`` in a cell that was refused.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowblend_plugins.errors import FlowBlendError

API_VERSION = 1
FILE_NAME = "matrix.json"


@dataclass(kw_only=True)
class CellResult:
    """What was found of one cell. Ranges are (lowest, highest) over the timed repeats, ``…_std`` over the prompts.

    Attributes:
        id, pair, schedule, adapters: what was run.
        stages: the schedule in steps, counted from 1.
        declared, declared_reasons: the verdict that follows from traits, before anything ran.
        observed, reasons: the verdict on what was seen.
        error: where it raised, its last lines.
        latency_ms: of one warm generation, prompt encoding and denoising without decoding; the median.
        speedup_over_large, speedup_over_blend, speedup_over_stack: medians of the ratios to the control that ran
            beside it: large-only, the same schedule without adapters, the same adapters without a schedule.
        stacking_efficiency: ``speedup_over_large`` over the product of what blend and stack give alone.
        flops_fraction_linear, flops_fraction_full: FLOPs of the denoisers over those of large-only, counting linear
            layers only (as the paper does) and counting everything.
        num_large_forwards, num_small_forwards: computed by the denoiser; ``num_reused_forwards``,
            ``num_predicted_forwards``: answered from a cache instead.
        forwards: the same by denoiser, stage and guidance branch.
        timeline: for every step its denoiser, its stage and what was done in it.
        psnr_db, ssim: to large-only at the same seeds, the mean over the prompts.
        metrics: every other registered metric of (video, large-only's video): mean and std over the prompts.
        prompt_alignment: share of captioned attributes that are right, 0..1.
        frechet_distance: of classifier features to those of real videos.
        is_identical_to_large: latents and videos equal large-only's, bit for bit.
        is_warm_equal: generation 2 equals generation 1.
        is_teardown_clean: large-only after ``disable()`` equals large-only before, bit for bit.
        peak_memory_mb: the most that was in use while the videos were made, of what ``peak_memory_of`` says.
        peak_memory_of: ``"device"`` for the device's allocator, ``"process"`` for the worker's resident set, which
            holds the weights of both denoisers and the libraries too.
        videos: files of the first prompts, relative to the folder of the matrix; stills where the pair makes stills.
        failure: of a broken cell, how it failed: ``"raised"``, ``"inexact"``, ``"crashed"``, ``"hung"`` or
            ``"out_of_memory"``.
        num_timed: generations that ``latency_ms`` is the median of.
        num_forwards_run: denoiser forwards that were computed for it, one for each video of a batch.
        num_forwards_timed: those of them that were whole generations for timing; a round of controls is counted with
            one of the cells that it serves.
        num_forwards_alone: what it would have taken with nothing shared: its own controls, and every step computed.
        expectation: the reason given in ``expectations.toml`` where it foresaw this outcome.
        seconds_for_videos: what making its videos took; ``seconds`` what measuring it took.
    """

    id: str
    pair: str
    schedule: str
    adapters: list[str]
    stages: str | None = None
    declared: str | None = None
    declared_reasons: list[str] = field(default_factory=list)
    observed: str | None = None
    reasons: list[str] = field(default_factory=list)
    error: str | None = None
    latency_ms: float | None = None
    latency_ms_range: list[float] | None = None
    speedup_over_large: float | None = None
    speedup_over_large_range: list[float] | None = None
    speedup_over_blend: float | None = None
    speedup_over_stack: float | None = None
    stacking_efficiency: float | None = None
    flops_fraction_linear: float | None = None
    flops_fraction_full: float | None = None
    num_large_forwards: int | None = None
    num_small_forwards: int | None = None
    num_reused_forwards: int | None = None
    num_predicted_forwards: int | None = None
    forwards: list[dict[str, Any]] = field(default_factory=list)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    psnr_db: float | None = None
    psnr_db_std: float | None = None
    ssim: float | None = None
    ssim_std: float | None = None
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    prompt_alignment: float | None = None
    frechet_distance: float | None = None
    is_identical_to_large: bool | None = None
    is_warm_equal: bool | None = None
    is_teardown_clean: bool | None = None
    peak_memory_mb: float | None = None
    peak_memory_of: str | None = None
    videos: list[str] = field(default_factory=list)
    failure: str | None = None
    num_timed: int = 0
    num_forwards_run: int = 0
    num_forwards_timed: int = 0
    num_forwards_alone: int = 0
    expectation: str | None = None
    seconds_for_videos: float | None = None
    seconds: float | None = None


@dataclass(kw_only=True)
class ControlResult:
    """One denoiser alone, without FlowBlending: the large one is the control of every cell, the small one the floor.

    ``linear_flops`` and ``full_flops`` are those of one generation; the rest is as in :class:`CellResult`, with
    ``psnr_db`` and the other comparisons to large-only ``null`` for the large denoiser itself.
    """

    latency_ms: float | None = None
    linear_flops: int | None = None
    full_flops: int | None = None
    num_forwards: int | None = None
    psnr_db: float | None = None
    psnr_db_std: float | None = None
    ssim: float | None = None
    ssim_std: float | None = None
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    prompt_alignment: float | None = None
    frechet_distance: float | None = None
    videos: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class PairRecord:
    """One pair of the run, what it was asked for, and its controls.

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
    """

    name: str
    pipeline: str
    makes: str
    prompts: list[str]
    seeds: list[int]
    call: dict[str, Any]
    early: float
    late: float
    boundary_steps: list[int] | None = None
    judge: str | None = None
    fps: float | None = None
    divergence: list[dict[str, Any]] = field(default_factory=list)
    large_only: ControlResult = field(default_factory=ControlResult)
    small_only: ControlResult = field(default_factory=ControlResult)


@dataclass(kw_only=True)
class WorkRecord:
    """What the run cost, and what it would have cost with nothing shared.

    A forward is one denoiser call for one video: a call on a batch of eight is eight forwards.

    Attributes:
        num_forwards: computed in all, timing and controls included.
        num_forwards_timed: those of them that were made for timing, which shares nothing.
        num_forwards_without_sharing: had every cell run its own controls for its own seeds, and every step.
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
    """What was asked of the whole run.

    Attributes:
        command: as typed.
        pairs: each with its own prompts, call and controls.
        schedules, stacks: what was crossed, as texts.
        depth: adapters in the largest stack that was made up from the registered ones; 0 where none was.
        num_repeats: timed generations of each cell.
        budget: bounds below which a cell is degraded.
        num_planned: cells that were asked for; fewer are there when the run was interrupted.
        executor: what ran the cells, in words, with the number of workers.
        is_sharing: whether cells shared controls and common steps.
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
    work: WorkRecord = field(default_factory=WorkRecord)


@dataclass(kw_only=True)
class Matrix:
    """A whole run."""

    environment: dict[str, Any]
    run: RunRecord
    cells: list[CellResult] = field(default_factory=list)

    def pair(self, name: str) -> PairRecord:
        """The record of a pair that cells name."""
        return next(pair for pair in self.run.pairs if pair.name == name)

    @property
    def is_complete(self) -> bool:
        return len(self.cells) == self.run.num_planned

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"api_version": API_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, value: Any) -> Matrix:
        """What :meth:`to_dict` gave.

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
                cells=[CellResult(**cell) for cell in value["cells"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FlowBlendError(
                f"these results are damaged: {type(error).__name__}: {error}. Run `flowblend matrix run` again."
            ) from error


def _read_pair(value: dict[str, Any]) -> PairRecord:
    controls: dict[str, Any] = {name: ControlResult(**value[name]) for name in ("large_only", "small_only")}
    return PairRecord(**(value | controls))


def read_matrix(folder: Path) -> Matrix:
    """The results in a folder that ``flowblend matrix run`` wrote.

    Raises:
        FlowBlendError: there are none, or they cannot be read.
    """
    path = folder / FILE_NAME
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FlowBlendError(
            f"{path} does not exist. Give the folder that `flowblend matrix run --out DIR` wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise FlowBlendError(f"{path} cannot be read: {error}. Run `flowblend matrix run` again.") from error
    return Matrix.from_dict(value)
