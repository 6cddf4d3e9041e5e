"""Either denoiser alone, before any cell: large-only is the baseline of every cell, small-only the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from flowblend_plugins.calibration.divergence import Divergence, shadowed
from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.hookspecs import Metric
from flowblend_plugins.schedule import StageSchedule
from flowblend_plugins.trace.generation import GenerationFlops
from flowblend_plugins.trace.trace import Trace

from ..results.cells import CellSpec
from ..results.intervals import USUAL_SPREADS, Spread
from ..results.matrix_results import BaselineResult
from .baselines import LARGE_ALONE, SMALL_ALONE
from .bench import Bench, Videos
from .fidelity import Fidelity, describe_large
from .measurements import count_flops


@dataclass(frozen=True)
class PairBaselines:
    """Either denoiser alone, against which every cell is held.

    Attributes:
        latents: of large-only, of the first prompt.
        videos: of large-only, for each look so far those of the prompts that it adds; ``small_videos`` of small-only,
            of the first look alone.
        flops: of one large-only generation of the first prompt; ``None`` where they cannot be counted.
        divergences: of the small denoiser in that generation's shadow.
        large, small: what the results say of them.
        usual: spreads over prompts of the blend alone.
        num_forwards: denoiser forwards that all this took, one for each video of a batch.
    """

    latents: torch.Tensor
    videos: list[Videos]
    small_videos: Videos
    flops: GenerationFlops | None
    divergences: list[Divergence]
    large: BaselineResult
    small: BaselineResult
    num_forwards: int
    usual: Mapping[str, Spread] = field(default_factory=lambda: USUAL_SPREADS)


def measure_baseline(bench: Bench, pair_name: str, metrics: Mapping[str, Metric], shown: range) -> PairBaselines:
    """Large-only: warm it up, watch the small denoiser in its shadow, make the reference videos. Then small-only.

    Args:
        shown: numbers of the prompts of the first look.

    Raises:
        FlowBlendError: watching changed the trajectory, so nothing that follows could be trusted.
    """
    first = bench.time_latents(None, "large-only, warming up")
    spec = CellSpec(LARGE_ALONE)
    with bench.enabled(spec) as blend:
        assert blend is not None
        with shadowed(blend.trace, bench.guidance_scale) as shadow:
            watched = bench.time_latents(spec, "large-only, the small denoiser in its shadow")
        large, flops = _describe_baseline(blend.trace)
    second = bench.time_latents(None, "large-only")
    if not (torch.equal(watched.latents, first.latents) and torch.equal(second.latents, first.latents)):
        raise FlowBlendError(
            f"large-only on {pair_name} does not repeat itself bit for bit, so nothing can be compared with "
            "it. Is its sampler deterministic, and does another process change its weights?"
        )
    large.latency_ms = second.latency_ms
    videos = bench.make_videos(None, "large-only, videos", shown)
    judge = bench.prompts.judge
    describe_large(videos, judge, large)

    spec = CellSpec(SMALL_ALONE)
    with bench.enabled(spec) as blend:
        assert blend is not None
        timed = bench.time_latents(spec, "small-only")
        small, _ = _describe_baseline(blend.trace)
        small_videos = bench.make_videos(spec, "small-only, videos", shown)
    small.latency_ms = timed.latency_ms
    fidelity = Fidelity(metrics, judge)
    fidelity.add(small_videos, videos)
    fidelity.describe(small)
    small.frechet_distance = judge.frechet_distance(small_videos) if judge is not None else None

    assert large.num_forwards is not None
    assert small.num_forwards is not None
    num_forwards = large.num_forwards * (4 + len(videos)) + small.num_forwards * (1 + len(videos))
    return PairBaselines(first.latents, [videos], small_videos, flops, shadow.divergences, large, small, num_forwards)


def with_pilot(
    bench: Bench, baseline: PairBaselines, metrics: Mapping[str, Metric], shown: Sequence[range]
) -> PairBaselines:
    """Add the spreads over prompts that LSL alone has.

    Args:
        shown: numbers of the prompts of the first looks; large-only's videos of them are kept for the cells.
    """
    spec, fidelity = CellSpec(StageSchedule.named("LSL")), Fidelity(metrics, None)
    num_forwards = baseline.num_forwards
    assert baseline.large.num_forwards is not None
    for look, numbers in enumerate(shown):
        if look == len(baseline.videos):
            baseline.videos.append(bench.make_videos(None, "large-only, videos of a pilot", numbers))
            num_forwards += len(numbers) * baseline.large.num_forwards
        with bench.enabled(spec) as blend:
            assert blend is not None
            made = bench.make_shared(blend, spec, (), "LSL, videos of a pilot", numbers)
        num_forwards += made.num_forwards
        fidelity.add(made.videos, baseline.videos[look])
    return replace(baseline, usual=fidelity.spreads(), num_forwards=num_forwards)


def _describe_baseline(trace: Trace) -> tuple[BaselineResult, GenerationFlops | None]:
    """The forwards and FLOPs of the last generation."""
    baseline, flops = BaselineResult(num_forwards=len(trace.generations[-1].calls)), count_flops(trace)
    if flops:
        baseline.linear_flops, baseline.full_flops = flops.linear, flops.full
    return baseline, flops
