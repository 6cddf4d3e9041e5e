"""From what was seen to the figures of a cell: times, forwards, FLOPs and metrics over the prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowblend_plugins.errors import FlopCountError
from flowblend_plugins.hookspecs import Metric
from flowblend_plugins.trace import Generation, GenerationFlops, Trace

from .bench import Videos
from .results import CellResult


def describe_times(times: Mapping[str, list[float]], result: CellResult) -> None:
    """Speed as ratios to the controls that ran in the same round, so that a slow moment slows both sides.

    Args:
        times: milliseconds by round: of ``"cell"``, ``"large"``, and with adapters on a schedule that changes
            denoisers of ``"blend"`` and ``"stack"``.
        result: is filled in.
    """
    cell, large = np.array(times["cell"]), np.array(times["large"])
    result.latency_ms, result.latency_ms_range = _median_and_range(cell)
    result.speedup_over_large, result.speedup_over_large_range = _median_and_range(large / cell)
    if "blend" in times:
        blend, stack = np.array(times["blend"]), np.array(times["stack"])
        result.speedup_over_blend = float(np.median(blend / cell))
        result.speedup_over_stack = float(np.median(stack / cell))
        # Observed over the product of the parts, (large / cell) / ((large / blend) (large / stack)), shortened.
        result.stacking_efficiency = float(np.median(blend * stack / (cell * large)))


def _median_and_range(values: Any) -> tuple[float, list[float]]:
    return float(np.median(values)), [float(values.min()), float(values.max())]


def describe_generation(generation: Generation, result: CellResult) -> None:
    """Which forwards were made, in total, by denoiser, stage and branch, and step by step."""
    result.num_large_forwards = generation.num_forwards("L", "compute")
    result.num_small_forwards = generation.num_forwards("S", "compute")
    result.num_reused_forwards = sum(call.outcome == "reuse" for call in generation.calls)
    result.num_predicted_forwards = sum(call.outcome == "predict" for call in generation.calls)
    counts = Counter(
        (call.step.denoiser, call.step.stage.value, call.step.branch, call.outcome) for call in generation.calls
    )
    result.forwards = [
        {"denoiser": denoiser, "stage": stage, "branch": branch, "outcome": outcome, "num": num}
        for (denoiser, stage, branch, outcome), num in counts.items()
    ]
    result.timeline = _timeline(generation)


def _timeline(generation: Generation) -> list[dict[str, Any]]:
    steps: dict[int, dict[str, Any]] = {}
    for call in generation.calls:
        row = steps.setdefault(
            call.step.step_index,
            {
                "step_index": call.step.step_index,
                "sigma": call.step.sigma,
                "denoiser": call.step.denoiser,
                "stage": call.step.stage.value,
                "outcomes": {},
            },
        )
        row["outcomes"][call.step.branch or "unnamed"] = call.outcome
    return list(steps.values())


def count_flops(trace: Trace) -> GenerationFlops | None:
    """Of the last generation; ``None`` where they cannot be counted from shapes alone."""
    try:
        return trace.flops()
    except FlopCountError:
        return None


def over_prompts(name: str, metric: Metric, videos: Videos, wanted: Videos) -> tuple[float | None, float | None]:
    """Mean and standard deviation over the prompts; infinite values (PSNR of equal videos) are no part of them."""
    try:
        values = [float(metric(video, other)) for video, other in zip(videos, wanted, strict=True)]
    except Exception as error:
        raise RuntimeError(f"the metric {name!r} failed: {type(error).__name__}: {error}") from error
    finite = [value for value in values if np.isfinite(value)]
    return (float(np.mean(finite)), float(np.std(finite))) if finite else (None, None)
