"""``plan()``: from a calibration file and a budget to a schedule and its forecast, in well under a second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from flowblend_plugins import UsageError

from ..moments import VelocityMoments
from ..sampler import Sampler
from .error_model import UNRELATED, ErrorModel, runs_of, solver_error
from .placement import best_placements

UNCALIBRATED_GROWTH = 30.0
"""Growth of errors where a calibration has not fitted it; placements change little between 10 and 100."""


@dataclass(frozen=True)
class PlannedStack:
    """A schedule with forecasts in its small steps, and what is expected of it.

    Attributes:
        large_steps: which steps the large denoiser answers.
        num_steps: of the sampler.
        adapters: the stack, as ``enable`` takes it.
        squared_error: expected of the final latents, to large-only's, per value.
        psnr_db: expected of the video, the mean over prompts; infinite where every step is large, ``None`` where the
            calibration did not measure what latents are in decibels.
        time_fraction: of large-only's denoising; ``None`` where the calibration did not measure times.
        relative_errors: of each forecast's guided velocity over its length; 0 at large steps.
        error_shares: of each step in ``squared_error``; they sum to 1, or to 0 where all steps are large.
    """

    large_steps: tuple[int, ...]
    num_steps: int
    adapters: tuple[str, ...]
    squared_error: float
    psnr_db: float | None
    time_fraction: float | None
    relative_errors: tuple[float, ...]
    error_shares: tuple[float, ...]

    @property
    def flops_fraction(self) -> float:
        """Share of large-only's FLOPs; forecasts cost none, and the small denoiser is never called."""
        return len(self.large_steps) / self.num_steps

    @property
    def letters(self) -> str:
        """The denoiser of each step, ``S`` where it is forecast."""
        return letters_of(self.large_steps, self.num_steps)

    @property
    def schedule(self) -> str:
        """Text of the schedule, as ``enable`` and ``--schedule`` take it."""
        return schedule_of(self.large_steps, self.num_steps)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limit on cost, or on what must be kept; exactly one of these.

    Attributes:
        large_steps: steps that the large denoiser answers.
        flops_fraction: of large-only's FLOPs.
        time_fraction: of large-only's time, by the times per step that the calibration measured.
        min_psnr_db: expected PSNR to large-only.
    """

    large_steps: int | None = None
    flops_fraction: float | None = None
    time_fraction: float | None = None
    min_psnr_db: float | None = None

    def __post_init__(self) -> None:
        given = [one for one in vars(self).values() if one is not None]
        if len(given) != 1:
            raise UsageError(
                f"plan takes one budget, and was given {len(given)}. Give --large-steps, --flops, --time or --min-psnr."
            )

    def is_kept_by(self, stack: PlannedStack) -> bool:
        """Raises ``UsageError`` where the calibration did not measure what is asked for."""
        if self.large_steps is not None:
            return len(stack.large_steps) <= self.large_steps
        if self.flops_fraction is not None:
            return stack.flops_fraction <= self.flops_fraction + 1e-9
        measured = stack.psnr_db if self.time_fraction is None else stack.time_fraction
        if measured is None:
            what = "decibels" if self.time_fraction is None else "time"
            raise UsageError(
                f"plan: this calibration has not measured what the pipeline's own sampler gives, so {what} cannot be "
                "asked for. Run `flowblend calibrate forecast` again, or give --large-steps or --flops."
            )
        if self.time_fraction is not None:
            return measured <= self.time_fraction
        return measured >= (self.min_psnr_db or 0.0)


@dataclass(frozen=True)
class Plan:
    """The stack that was chosen, and the predicted Pareto front it is from, the cheapest first."""

    chosen: PlannedStack
    front: tuple[PlannedStack, ...]


def plan(moments: str | Path, budget: Budget, *, sampler: Sampler | None = None, adapters: Sequence[str] = ()) -> Plan:
    """Compute the best stack within a budget.

    Args:
        moments: file of ``flowblend calibrate forecast``, or ``"reference"`` for that of the embedded pair.
        budget: what it may cost or must keep.
        sampler: to sample with; the calibrated one where not given.
        adapters: texts of adapters to put before the forecast: the solver, where the sampler is not the pipeline's own.

    Raises:
        ValueError: the file is not there, or holds no moments.
        UsageError: nothing keeps the budget, or the file lacks what is asked for.
    """
    front = plan_front(VelocityMoments.read(moments), str(moments), sampler=sampler, adapters=adapters)
    kept = [stack for stack in front if budget.is_kept_by(stack)]
    if not kept:
        cheapest, best = front[0], front[-1]
        raise UsageError(
            f"plan: nothing keeps this budget. The cheapest stack has {len(cheapest.large_steps)} large step of "
            f"{cheapest.num_steps}, the most faithful one {_decibels(best)}. Give another budget."
        )
    chosen = kept[0] if budget.min_psnr_db is not None else kept[-1]
    return Plan(chosen, tuple(front))


def plan_front(
    moments: VelocityMoments, name: str, *, sampler: Sampler | None = None, adapters: Sequence[str] = ()
) -> list[PlannedStack]:
    """The best placement of each number of large steps that is expected to err less than any smaller number.

    Args:
        moments: of the large denoiser.
        name: of their file, for the forecast's text.
        sampler, adapters: as for :func:`plan`.

    Raises:
        UsageError: neither is a sampler given, nor was one calibrated.
    """
    own = moments.own_sampling
    if sampler is None:
        if own is None:
            raise UsageError(
                "plan: these moments were measured without a run of the pipeline's own sampler, so its steps are not "
                "known. Run `flowblend calibrate forecast` again."
            )
        sampler = own.sampler
    growth = UNCALIBRATED_GROWTH if own is None else own.growth
    model = ErrorModel(moments, sampler, growth)
    is_own = own is not None and sampler is own.sampler
    floor = 0.0 if is_own or own is None else solver_error(moments, sampler, own.sampler, growth)
    front: list[PlannedStack] = []
    for large_steps, summed in best_placements(model.costs()):
        if not front or summed + floor < front[-1].squared_error:
            front.append(_planned(model, large_steps, summed + floor, moments, name, tuple(adapters), is_own))
    return front


def letters_of(large_steps: Sequence[int], num_steps: int) -> str:
    """The denoiser of each step, ``S`` where it is forecast."""
    return "".join("L" if step in large_steps else "S" for step in range(num_steps))


def schedule_of(large_steps: Sequence[int], num_steps: int) -> str:
    """Text of the schedule with these large steps."""
    return ",".join(f"{letter}:{len(list(run))}" for letter, run in groupby(letters_of(large_steps, num_steps)))


def predicted_psnr_db(squared_error: float, offset_db: float) -> float:
    """PSNR of the video for an expected squared error of the latents, which ends growing at that of unrelated ones."""
    if squared_error <= 0.0:
        return math.inf
    return offset_db + 10.0 * math.log10(1.0 / squared_error + 1.0 / UNRELATED)


def _planned(
    model: ErrorModel,
    large_steps: tuple[int, ...],
    squared_error: float,
    moments: VelocityMoments,
    name: str,
    adapters: tuple[str, ...],
    is_own: bool,
) -> PlannedStack:
    number, own = model.num_steps, moments.own_sampling
    relative, grown = [0.0] * number, [0.0] * number
    for known, steps in runs_of(large_steps, number):
        before = 0.0
        for step, error, total in zip(
            steps, model.relative_errors(known, steps), model.run_errors(known, steps), strict=True
        ):
            relative[step], grown[step] = float(error), float(total) - before
            before = float(total)
    forecast = f"forecast(recall_every=0, moments={name!r}{', as_calibrated=True' if is_own else ''})"
    return PlannedStack(
        large_steps=large_steps,
        num_steps=number,
        adapters=adapters if len(large_steps) == number else (*adapters, forecast),
        squared_error=squared_error,
        psnr_db=None if own is None else predicted_psnr_db(squared_error, own.psnr_offset_db),
        time_fraction=None if own is None else own.time_fraction(len(large_steps), number),
        relative_errors=tuple(relative),
        error_shares=tuple(one / squared_error if squared_error > 0.0 else 0.0 for one in grown),
    )


def _decibels(stack: PlannedStack) -> str:
    return "an unknown PSNR" if stack.psnr_db is None else f"{stack.psnr_db:.1f} dB"
