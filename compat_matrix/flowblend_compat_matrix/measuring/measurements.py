"""Figures of a cell that its generations give: times, forwards and FLOPs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from flowblend_plugins.errors import FlopCountError
from flowblend_plugins.trace.generation import Generation, GenerationFlops
from flowblend_plugins.trace.trace import Trace

from ..results.cell_result import UNNAMED_BRANCH, TimelineRow
from ..results.cells import CellSpec
from ..results.intervals import estimate_speed
from ..results.matrix_results import CellResult
from .bench import Timed


@dataclass
class Times:
    """Times of every cell and baseline in the order of the rounds, in ms, and the latents of every generation."""

    ms: dict[CellSpec | None, list[float]] = field(default_factory=lambda: defaultdict(list))
    latents: dict[CellSpec | None, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, run: CellSpec | None, timed: Timed) -> None:
        self.ms[run].append(timed.latency_ms)
        self.latents[run].append(timed.latents)


def describe_times(times: Mapping[str, list[float]], result: CellResult) -> None:
    """Speed as ratios to the baselines that ran in the same round, so that a slow moment slows both sides.

    Args:
        times: milliseconds by round: of ``"cell"``, ``"large"``, and with adapters on a schedule that changes
            denoisers of ``"blend"`` and ``"stack"``.
        result: is filled in.
    """
    cell, large = np.array(times["cell"]), np.array(times["large"])
    result.latency_ms, result.latency_ms_range = _median_and_range(cell)
    result.speedup_over_large, result.speedup_over_large_range = _median_and_range(large / cell)
    result.speedup_over_large_interval = estimate_speed((large / cell).tolist())
    if "blend" in times and "stack" in times:
        blend, stack = np.array(times["blend"]), np.array(times["stack"])
        result.speedup_over_blend = float(np.median(blend / cell))
        result.speedup_over_stack = float(np.median(stack / cell))
        # Observed over the product of the parts, (large / cell) / ((large / blend) (large / stack)), shortened.
        result.stacking_efficiency = float(np.median(blend * stack / (cell * large)))


def _median_and_range(values: NDArray[np.float64]) -> tuple[float, list[float]]:
    return float(np.median(values)), [float(values.min()), float(values.max())]


def describe_generation(generation: Generation, result: CellResult) -> None:
    """Count the forwards in total, by denoiser, stage and branch, and list them step by step."""
    computed = Counter(call.step.denoiser for call in generation.calls if call.has_run)
    answered = Counter(call.outcome for call in generation.calls if not call.has_run)
    result.num_large_forwards, result.num_small_forwards = computed["L"], computed["S"]
    result.num_reused_forwards, result.num_predicted_forwards = answered["reuse"], answered["predict"]
    counts = Counter(
        (call.step.denoiser, call.step.stage.value, call.step.branch, call.outcome) for call in generation.calls
    )
    result.forwards = [
        {"denoiser": denoiser, "stage": stage, "branch": branch, "outcome": outcome, "num": num}
        for (denoiser, stage, branch, outcome), num in counts.items()
    ]
    result.timeline = _timeline(generation)


def _timeline(generation: Generation) -> list[TimelineRow]:
    steps: dict[int, TimelineRow] = {}
    for call in generation.calls:
        if call.is_extra:
            continue
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
        row["outcomes"][call.step.branch or UNNAMED_BRANCH] = call.outcome
    return list(steps.values())


def count_flops(trace: Trace) -> GenerationFlops | None:
    """FLOPs of the last generation; ``None`` where they cannot be counted from shapes alone."""
    try:
        return trace.flops()
    except FlopCountError:
        return None
