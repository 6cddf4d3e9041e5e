"""Gain of a blended call over the large denoiser alone: in time, in FLOPs and, where both were run, in likeness."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FlopCountError

if TYPE_CHECKING:  # which loads torch
    from ..calibration.similarity import Video
    from ..trace.trace import Trace


@dataclass(frozen=True)
class Gain:
    """Cost of a blended call beside that of large-only: the pipeline without FlowBlending and its adapters.

    Attributes:
        against: the call that it is compared with.
        num_steps: of that call.
        seconds: of that call; ``None`` where it is not known.
        speedup: times as fast; ``None`` where it is not known.
        flops_fraction: share of its FLOPs, full count; ``None`` where it is not known.
        linear_flops_fraction: the same of linear layers only.
        is_measured: whether that call was made; else its time is made up of the large denoiser's median call.
    """

    against: str
    num_steps: int
    seconds: float | None = None
    speedup: float | None = None
    flops_fraction: float | None = None
    linear_flops_fraction: float | None = None
    is_measured: bool = False

    def __str__(self) -> str:
        told = []
        if self.speedup is not None:
            about, once = ("", " (one run each, this one first)") if self.is_measured else ("about ", "")
            told.append(f"{about}{self.speedup:.2f} times as fast{once}")
        if self.flops_fraction is not None:
            told.append(f"{self.flops_fraction:.1%} of the FLOPs")
        known = ", ".join(told) or "not known without --compare, for an adapter sets guidance or no L was timed"
        return f"Against {self.against} ({self.num_steps} steps): {known}."


def gain_over(
    trace: Trace,
    seconds: float,
    against: str,
    num_steps: int,
    num_timesteps: int,
    *,
    has_same_guidance: bool,
    seconds_measured: float | None = None,
) -> Gain:
    """Gain of the last generation of a trace.

    Args:
        trace: of the blended call.
        seconds: it took, decoding included.
        against: words for the call to compare with.
        num_steps: of that call, and ``num_timesteps`` of its sampler.
        has_same_guidance: as many branches are called at a step there as here; else FLOPs and time are not estimated.
        seconds_measured: that it took; ``None`` where it was not made.
    """
    generation = trace.last
    assert generation is not None
    answered = [call for call in generation.calls if not call.is_extra]
    steps = [call.step.step_index for call in answered]
    calls_there = max(map(steps.count, set(steps))) * num_timesteps
    linear = full = None
    plain_seconds = seconds_measured
    if has_same_guidance:
        try:
            flops = trace.flops()
            share = len(answered) / calls_there
            linear, full = flops.linear_fraction_of_large * share, flops.full_fraction_of_large * share
        except FlopCountError:  # the summary of the trace says why
            pass
        large_ms = [call.time_ms for call in generation.calls if call.step.denoiser == "L" and call.has_run]
        spent_ms = sum(call.time_ms for call in generation.calls)
        if plain_seconds is None and large_ms and math.isfinite(spent_ms):
            plain_seconds = seconds + (calls_there * statistics.median(large_ms) - spent_ms) / 1e3
    return Gain(
        against,
        num_steps,
        plain_seconds,
        None if plain_seconds is None else plain_seconds / seconds,
        full,
        linear,
        is_measured=seconds_measured is not None,
    )


def psnr_of(frames: Video, large_frames: Video) -> float:
    """PSNR of two videos or stills with values in 0..1, in dB; infinite where they are equal."""
    import numpy as np

    error = float(np.mean((np.asarray(frames, np.float64) - np.asarray(large_frames, np.float64)) ** 2))
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def side_by_side(left: Video, right: Video) -> Video:
    """Two videos ``[F, H, W, 3]`` (or stills) of one shape as one, with a white bar of 1/32 of the width between."""
    import numpy as np

    bar = np.ones((*left.shape[:-2], max(2, left.shape[-2] // 32), 3), left.dtype)
    return np.concatenate([left, bar, right], axis=-2)
