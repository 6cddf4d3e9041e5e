"""Figures of a cell and its observed verdict, from everything that was measured of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from flowblend_plugins.hookspecs import Metric

from ..results.verdicts import Observation, QualityBudget, observe
from .baselines import blend_of, stack_of
from .cell_in_progress import CellInProgress
from .denoisers_alone import PairBaselines
from .measurements import Times, compare_videos, describe_times
from .prompts import Judge


def compare_cell(
    cell: CellInProgress,
    baseline: PairBaselines,
    times: Times,
    is_large_as_before: bool,
    metrics: Mapping[str, Metric],
    judge: Judge | None,
    budget: QualityBudget,
) -> None:
    """Compare a cell with its baselines, and conclude.

    Args:
        cell: has run to its end.
        baseline: either denoiser alone.
        times: of all that was timed with it.
        is_large_as_before: whether large-only gave the baseline's latents after everything.
        metrics: name to function of (video, large-only's video).
        judge: who says prompt alignment; ``None`` where nobody can.
        budget: below it the cell is degraded.
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
    result.is_identical_to_large = torch.equal(own, baseline.latents) and np.array_equal(videos, baseline.videos)
    compare_videos(videos, baseline.videos, metrics, judge, result)
    seen = Observation(
        is_large_alone=spec.is_large_alone,
        is_finite=bool(torch.isfinite(own).all()) and bool(np.isfinite(videos).all()),
        is_warm_equal=result.is_warm_equal,
        is_teardown_clean=result.is_teardown_clean,
        is_identical_to_large=result.is_identical_to_large,
        is_identical_to_blend=torch.equal(own, unstacked[-1]) if unstacked else None,
        num_other_forwards=sum(row["num"] for row in result.forwards if row["denoiser"] != "L"),
        psnr_db=result.psnr_db,
        ssim=result.ssim,
        alignment=result.prompt_alignment,
        large_alignment=baseline.large.prompt_alignment,
        speedup=result.speedup_over_large,
    )
    cell.conclude(*observe(seen, budget))
