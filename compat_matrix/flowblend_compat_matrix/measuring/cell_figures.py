"""Figures of a cell and its observed verdict, from everything that was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from flowblend_plugins.hookspecs import Metric

from ..results.intervals import Estimate
from ..results.verdicts import QUALITY_VERDICTS, Observation, QualityBudget, observe
from .baselines import blend_of, stack_of
from .bench import Videos
from .cell_in_progress import CellInProgress
from .denoisers_alone import PairBaselines
from .fidelity import Fidelity
from .measurements import Times, describe_times
from .prompts import Judge


def compare_cell(
    cell: CellInProgress,
    baseline: PairBaselines,
    times: Times,
    is_large_as_before: bool,
    metrics: Mapping[str, Metric],
    judge: Judge | None,
) -> None:
    """Compare a cell with its baselines in all but fidelity.

    Args:
        cell: has run to its end.
        baseline: either denoiser alone.
        times: of all that was timed with it.
        is_large_as_before: whether large-only gave the baseline's latents after everything.
        metrics: name to function of (video, large-only's video).
        judge: who says prompt alignment; ``None`` where nobody can.
    """
    spec, result, made = cell.spec, cell.result, cell.made
    assert made is not None
    blend, stack = blend_of(spec), stack_of(spec)
    names = {"cell": spec, "large": None} | ({"blend": blend, "stack": stack} if blend and stack else {})
    describe_times({name: times.ms[one] for name, one in names.items() if times.ms[one]}, result)
    result.num_timed = len(times.ms[spec])
    own = times.latents[spec][-1]
    result.is_warm_equal = all(torch.equal(one, own) for one in times.latents[spec])
    result.is_teardown_clean = is_large_as_before
    # Where the schedule never changes denoisers, the blend alone is large-only.
    unstacked = times.latents[blend or None] if spec.stack else []
    videos = made.videos
    result.is_identical_to_large = torch.equal(own, baseline.latents) and np.array_equal(videos, baseline.videos[0])
    result.frechet_distance = judge.frechet_distance(videos) if judge is not None else None
    speed = result.speedup_over_large
    cell.fidelity = Fidelity(metrics, judge, baseline.usual)
    cell.seen = Observation(
        is_large_alone=spec.is_large_alone,
        is_finite=bool(torch.isfinite(own).all()) and bool(np.isfinite(videos).all()),
        is_warm_equal=result.is_warm_equal,
        is_teardown_clean=result.is_teardown_clean,
        is_identical_to_large=result.is_identical_to_large,
        is_identical_to_blend=torch.equal(own, unstacked[-1]) if unstacked else None,
        num_other_forwards=sum(row["num"] for row in result.forwards if row["denoiser"] != "L"),
        psnr_db=None,
        ssim=None,
        speedup=None if speed is None else Estimate(speed, *(result.speedup_over_large_interval or (speed, speed))),
    )


def judge_fidelity(
    cell: CellInProgress, videos: Videos, large: Videos, looks: Sequence[int], budget: QualityBudget, is_screening: bool
) -> None:
    """Take in the videos of one more look, and conclude as far as they allow.

    Args:
        cell: was compared; its verdict is ``undecided`` where more prompts are needed, or would be.
        videos: of the prompts that the look adds; ``large`` those of large-only.
        looks: numbers of prompts at which it may be concluded.
        budget: below it the cell is degraded.
        is_screening: the means decide.
    """
    fidelity, result = cell.fidelity, cell.result
    assert fidelity is not None
    assert cell.seen is not None
    fidelity.add(videos, large)
    fidelity.describe(result)
    psnr = ssim = kept = None
    if not result.is_identical_to_large:
        psnr, ssim = (fidelity.estimate(name, looks) for name in ("psnr_db", "ssim"))
        kept = fidelity.estimate_kept(looks)
    result.num_prompts, result.num_attributes = fidelity.num_prompts, sum(fidelity.captioned)
    result.psnr_db_interval = psnr.interval if psnr else None
    result.ssim_interval = ssim.interval if ssim else None
    result.alignment_kept, result.alignment_kept_interval = (kept.value, kept.interval) if kept else (None, None)
    cell.seen = replace(
        cell.seen,
        psnr_db=psnr,
        ssim=ssim,
        alignment_kept=kept,
        num_attributes=result.num_attributes,
        num_prompts=result.num_prompts,
        has_more=result.num_prompts < looks[-1],
        is_screening=is_screening,
    )
    verdict, reasons = observe(cell.seen, budget)
    cell.conclude(verdict, reasons)
    result.is_screened = is_screening and verdict in QUALITY_VERDICTS
