"""Running the pipeline's own sampler in a calibration: large-only, and a few planned stacks to check predictions on.

Moments say how far the final latents are off. What that is in decibels of the video, and what a step costs, is measured
here on the calibration's own prompts.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowblend_plugins import StackError, hookimpl
from flowblend_plugins.api import enable
from flowblend_plugins.types import KeywordsView, Output, Pipeline

from ..residual import SMALL
from .adapter import FittedForecasting, Forecast
from .moments import VelocityMoments
from .own_sampling import OwnSampling
from .planning.error_model import ErrorModel
from .planning.plan import plan_front, predicted_psnr_db, schedule_of
from .sampler import Sampler

if TYPE_CHECKING:
    import torch

    from flowblend_plugins import DenoiserCall

CHECKED_FRACTIONS = (1 / 4, 1 / 3, 1 / 2)
"""Shares of large steps in the computed stacks that are run."""
GROWTHS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
MOST_DB = 99.0
Noises = list[tuple["torch.Generator", "torch.Tensor"]]


def check_forecast(pipe: Pipeline, moments: VelocityMoments, *, calls: Sequence[KeywordsView]) -> VelocityMoments:
    """Run large-only and four stacks, three of them planned, and keep with the moments what was measured.

    The fourth forecasts every second step, so it errs early, which tells how such errors grow: of :data:`GROWTHS` that
    one is taken with which the four stacks agree best on decibels for a squared error.

    Args:
        pipe: the pipeline that the moments were measured on, with nothing enabled; its small denoiser is not needed.
        moments: of its denoiser.
        calls: keyword arguments of each generation, with the number of steps that will be used.

    Raises:
        StackError: the sampler cannot be planned for.
        UsageError: the guidance branches cannot be planned for.
    """
    noises = [noises_of(call.get("generator")) for call in calls]
    every = [run_placed(pipe, moments, None, call, noise) for call, noise in zip(calls, noises, strict=True)]
    sampler = every[0].watched.sampler
    large_ms = statistics.median(one for made in every for one in made.watched.times_ms(of_forecasts=False))
    forecast_ms, observed = list[float](), dict[tuple[int, ...], float]()
    for placement in _checked_placements(moments, sampler):
        psnrs = []
        for call, noise, large in zip(calls, noises, every, strict=True):
            made = run_placed(pipe, moments, placement, call, noise)
            psnrs.append(psnr_db(made.video, large.video))
            forecast_ms += made.watched.times_ms(of_forecasts=True)
        observed[placement] = statistics.fmean(psnrs)
    growth, offset = fitted_growth(moments, sampler, observed)
    model = ErrorModel(moments, sampler, growth)
    checked = tuple(
        {
            "schedule": schedule_of(placement, sampler.num_steps),
            "predicted_psnr_db": round(predicted_psnr_db(model.total(placement), offset), 2),
            "observed_psnr_db": round(seen, 2),
        }
        for placement, seen in observed.items()
    )
    own = OwnSampling(
        sampler=sampler,
        growth=growth,
        psnr_offset_db=offset,
        large_step_ms=large_ms,
        forecast_step_ms=statistics.median(forecast_ms),
        checked=checked,
    )
    return dataclasses.replace(moments, own_sampling=own)


def fitted_growth(
    moments: VelocityMoments, sampler: Sampler, observed: Mapping[tuple[int, ...], float]
) -> tuple[float, float]:
    """Growth of errors with which the stacks' offsets from predicted to observed PSNR spread least, and their median.

    Args:
        observed: PSNR in dB by large steps.
    """
    found = []
    for growth in GROWTHS:
        model = ErrorModel(moments, sampler, growth)
        offsets = [seen - predicted_psnr_db(model.total(one), 0.0) for one, seen in observed.items()]
        found.append((max(offsets) - min(offsets), growth, statistics.median(offsets)))
    _, growth, offset = min(found)
    return growth, offset


def _checked_placements(moments: VelocityMoments, sampler: Sampler) -> list[tuple[int, ...]]:
    """Computed stacks nearest to the fractions that are checked, and every second step large."""
    number = sampler.num_steps
    front = plan_front(dataclasses.replace(moments, own_sampling=None), "", sampler=sampler)
    usable = [stack for stack in front if 1 < len(stack.large_steps) < number]
    if not usable:
        raise StackError("a forecast is checked on three steps or more. Calibrate with more --own-steps.")
    nearest = [min(usable, key=lambda one: abs(one.flops_fraction - wanted)) for wanted in CHECKED_FRACTIONS]
    return list(dict.fromkeys([*(stack.large_steps for stack in nearest), tuple(range(0, number, 2))]))


class _Watched(FittedForecasting):
    """Forecasts every step but the large ones, notes the sampler as the pipeline set it, and when each step began."""

    def __init__(self, pipe: Pipeline, moments: VelocityMoments, large_steps: Sequence[int] | None) -> None:
        super().__init__(Forecast(recall_every=0), moments, pipe)
        self._pipe, self._large_steps = pipe, large_steps
        self._began: dict[int, float] = {}
        self._sampler: Sampler | None = None

    @hookimpl
    def flowblend_answer(self, call: DenoiserCall) -> Output:
        step = call.step
        if self._sampler is None:
            self._sampler = Sampler.of(self._pipe.scheduler)
        if step.step_index not in self._began:
            self._began[step.step_index] = _now()
        if self._large_steps is not None and step.step_index not in self._large_steps:
            call = copy.copy(call)
            call.step = step._replace(denoiser=SMALL)
        return super().flowblend_answer(call)

    @property
    def sampler(self) -> Sampler:
        assert self._sampler is not None, "the pipeline has called its denoiser"
        return self._sampler

    def times_ms(self, of_forecasts: bool) -> list[float]:
        """Times of the forecast steps or of the others, without the last step, whose end is not seen."""
        large = self._began.keys() if self._large_steps is None else self._large_steps
        return [
            (after - began) * 1e3
            for (step, began), (_, after) in itertools.pairwise(self._began.items())
            if (step not in large) == of_forecasts
        ]


@dataclasses.dataclass(frozen=True)
class Made:
    video: NDArray[np.float32]
    watched: _Watched


def run_placed(
    pipe: Pipeline, moments: VelocityMoments, large_steps: Sequence[int] | None, call: KeywordsView, noise: Noises
) -> Made:
    watched = _Watched(pipe, moments, large_steps)
    for generator, state in noise:
        generator.set_state(state)
    with enable(pipe, None, "LLL", plugins=[watched]):
        output = pipe(**{**call, "output_type": "np"})
    return Made(np.asarray(output.frames if hasattr(output, "frames") else output.images, np.float32), watched)


def noises_of(generators: torch.Generator | Sequence[torch.Generator | None] | None) -> Noises:
    """Generators of a call with their states, so that every stack starts from the same noise."""
    several = generators if isinstance(generators, Sequence) else [generators]
    return [(one, one.get_state()) for one in several if one is not None]


def psnr_db(video: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    error = float(np.mean((video.astype(np.float64) - wanted) ** 2))
    return min(MOST_DB, -10.0 * math.log10(error)) if error > 0.0 else MOST_DB


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
