"""Results of one cell, and of either denoiser alone, as ``matrix.json`` keeps them.

Numbers that do not exist are ``None``, never 0: the PSNR of two equal videos is infinite, so ``psnr_db`` is ``None``
where ``is_identical_to_large`` is true, and everything is ``None`` in a cell that was refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

UNNAMED_BRANCH = "unnamed"
"""In a timeline: a call that is for every guidance branch at once, or whose pipeline does not say which."""


class ForwardsRow(TypedDict):
    """Number of denoiser calls of one kind; ``outcome`` is what was done in them."""

    denoiser: str
    stage: str
    branch: str | None
    outcome: str
    num: int


class TimelineRow(TypedDict):
    """One step: its denoiser, its stage, and what was done for each guidance branch."""

    step_index: int
    sigma: float | None
    denoiser: str
    stage: str
    outcomes: dict[str, str]


@dataclass(kw_only=True)
class Confirmation:
    """Figures of one cell on prompts and seeds that chose nothing; the rest is as in :class:`CellResult`.

    Attributes:
        is_within_budget: every interval lies on the good side of its budget, here alone.
        is_on_front: among the cells that were confirmed beside it, none is both faster and nearer to large-only.
    """

    num_prompts: int
    psnr_db: float | None = None
    psnr_db_interval: list[float] | None = None
    ssim: float | None = None
    ssim_interval: list[float] | None = None
    alignment_kept: float | None = None
    alignment_kept_interval: list[float] | None = None
    speedup_over_large: float | None = None
    speedup_over_large_interval: list[float] | None = None
    num_timed: int = 0
    is_within_budget: bool = False
    is_on_front: bool = False


@dataclass(kw_only=True)
class CellResult:
    """Everything that was found of one cell.

    Ranges are (lowest, highest) over the timed repeats, ``…_std`` is over the prompts. An ``…_interval`` holds the mean
    over all prompts like these (of speed: over all rounds) with the confidence that ``RunRecord.confidence`` says.

    Attributes:
        id, pair, schedule, adapters: what was run.
        stages: the schedule in steps, counted from 1.
        declared, declared_reasons: the verdict that follows from traits, before anything ran.
        observed, reasons: the verdict on what was seen.
        error: where it raised, its last lines.
        latency_ms: of one warm generation, prompt encoding and denoising without decoding; the median.
        speedup_over_large_interval: from the rounds' ratios; ``None`` of fewer than three rounds.
        speedup_over_large, speedup_over_blend, speedup_over_stack: medians of the ratios to the baseline that ran
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
        num_prompts: prompts that the figures of fidelity are over; prompts are added until the verdict is certain.
        is_screened: ``observed`` says what few prompts show, whatever the intervals: nothing of it is certain.
        prompt_alignment: share of captioned attributes that are right, 0..1; of ``num_attributes``.
        alignment_kept: the same over large-only's on the same prompts.
        confirmation: figures on other prompts and seeds, of cells that could be the headline or on the front.
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
        num_forwards_timed: those of them that were whole generations for timing; a round of baselines is counted with
            one of the cells that it serves.
        num_forwards_alone: what it would have taken with nothing shared: its own baselines, and every step computed.
        expectation: the reason that an entry of ``expectations.toml`` gives, where one is about this cell.
        surprise: ``"unexpected"`` where declaration and observation disagree and no entry says why;
            ``"stale_expectation"`` where an entry says something else.
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
    speedup_over_large_interval: list[float] | None = None
    speedup_over_blend: float | None = None
    speedup_over_stack: float | None = None
    stacking_efficiency: float | None = None
    flops_fraction_linear: float | None = None
    flops_fraction_full: float | None = None
    num_large_forwards: int | None = None
    num_small_forwards: int | None = None
    num_reused_forwards: int | None = None
    num_predicted_forwards: int | None = None
    forwards: list[ForwardsRow] = field(default_factory=list)
    timeline: list[TimelineRow] = field(default_factory=list)
    num_prompts: int = 0
    is_screened: bool = False
    psnr_db: float | None = None
    psnr_db_std: float | None = None
    psnr_db_interval: list[float] | None = None
    ssim: float | None = None
    ssim_std: float | None = None
    ssim_interval: list[float] | None = None
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    prompt_alignment: float | None = None
    num_attributes: int = 0
    alignment_kept: float | None = None
    alignment_kept_interval: list[float] | None = None
    frechet_distance: float | None = None
    confirmation: Confirmation | None = None
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
    surprise: str | None = None
    seconds_for_videos: float | None = None
    seconds: float | None = None


@dataclass(kw_only=True)
class BaselineResult:
    """One denoiser alone, without FlowBlending: the large one is the baseline of every cell, the small one the floor.

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
