"""Forecast: in the small denoiser's steps the large one's last velocities are continued, and no denoiser is called.

Either along the line through the last two,

``v(x, t) = v_k + w (t - t_k) / (t_k - t_j) (v_k - v_j)``, of the last two large steps ``j < k``, for each guidance
branch, with ``w = trend (1 - t / t_0)^2``: where there is much noise the last velocity is the better guess, and towards
the end the line through the last two. Here ``t`` is the noise level and ``t_0`` the generation's first. TaylorSeer
(arXiv 2503.06923) continues features inside the denoiser, in steps counted; this continues its answer, in noise levels,
where the router says. docs/blending.md has what was measured.

Or as that sum of the last two large steps' velocities, of all guidance branches, which errs least by what was measured
of this denoiser beforehand (``moments``).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family, StackError, hookimpl
from flowblend_plugins.types import Output, Pipeline

from ..residual import SMALL, noise_level, velocity_of, with_velocity
from .moments import BATCHED_BRANCHES, Place, VelocityMoments, guides_in_one_batch

if TYPE_CHECKING:
    import torch

    from flowblend_plugins import DenoiserCall, StepContext


@dataclass(frozen=True, kw_only=True)
class Forecast(Adapter):
    """Forecast velocities from earlier large steps.

    Answer the small denoiser's steps from the large one's last velocities.

    Steps before the first large one are the small denoiser's own.

    Args:
        recall_every: of so many small steps in a row, the last is the large denoiser's; 1 calls it at every step,
            0 never.
        trend: weight of the change between the last two large steps where no noise is left; 0 gives the last velocity
            again.
        moments: file that ``flowblend calibrate forecast`` wrote for this denoiser, or ``"reference"`` for that of the
            embedded pair: the velocities are then combined as errs least by what was measured. ``trend`` has no part
            in it.
        as_calibrated: refuse, when the pipeline is called, another sampler, number of steps or guidance than those the
            moments were checked with; a computed schedule (``flowblend plan``) holds for these alone.
    """

    recall_every: int = 2
    trend: float = 1.0
    moments: str | None = None
    as_calibrated: bool = False

    name: ClassVar[str] = "forecast"
    page: ClassVar[str | None] = "docs/blending.md"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.BLENDING,
        needs_in_order=("L", "S"),
        compares_denoisers=True,
        wraps="answer",
    )
    suggested: ClassVar[tuple[str, ...]] = ("forecast", "forecast(recall_every=3)")

    def __post_init__(self) -> None:
        if self.recall_every < 0:
            raise ValueError(f"recall_every={self.recall_every}: expected an integer from 0 up")
        if not 0.0 <= self.trend < math.inf:
            raise ValueError(f"trend={self.trend}: expected a number from 0 up")
        if self.moments is not None:
            if self.trend != 1.0:
                raise ValueError(f"trend={self.trend} has no part in a forecast by moments; leave it out")
            _ = self._measured  # a file that cannot be read is told of with the options
        if self.as_calibrated and (self._measured is None or self._measured.own_sampling is None):
            raise ValueError("as_calibrated=True needs moments with a run of the pipeline's own sampler")

    @functools.cached_property
    def _measured(self) -> VelocityMoments | None:
        return None if self.moments is None else VelocityMoments.read(self.moments)

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        if self._measured is None:
            return
        denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
        found = self._measured.differences(denoiser)
        if found:
            yield (
                f"the moments in {self.moments!r} were measured on another denoiser ({'; '.join(found[:4])})",
                "Run `flowblend calibrate forecast` on this pair.",
            )

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[_Forecasting]:
        own = self._measured
        yield _Forecasting(self) if own is None else FittedForecasting(self, own, target.pipeline)


class _Said(NamedTuple):
    """One remembered output of the large denoiser, whose tensor is a copy."""

    step: StepContext
    output: Output

    @property
    def velocity(self) -> torch.Tensor:
        return velocity_of(self.output)


class _Forecasting:
    """Continues each guidance branch along its own line."""

    def __init__(self, options: Forecast) -> None:
        self._options = options
        self._said: dict[str | None, list[_Said]] = {}
        self._generation = self._last_index = -1
        self._first_level = 1.0

    @hookimpl
    def flowblend_answer(self, call: DenoiserCall) -> Output:
        step = call.step
        if step.generation != self._generation or step.step_index < self._last_index:
            self._said, self._generation, self._first_level = {}, step.generation, noise_level(step)
        self._last_index = step.step_index
        said = self._said.get(step.branch, [])
        if step.denoiser != SMALL:
            self._large = step.denoiser
        elif not said:
            return None
        elif step.step_index - said[-1].step.step_index != self._options.recall_every:
            return self._continued(step, said)
        output = call.run(self._large)
        own = _Said(step, with_velocity(output, velocity_of(output).clone()))
        self._said[step.branch] = [*said, own][-2:]
        return output

    def _continued(self, step: StepContext, said: list[_Said]) -> Output:
        last = said[-1]
        velocity = last.velocity.clone()  # a pipeline may write into what it is given
        if self._options.trend and len(said) > 1:
            level, last_level = noise_level(step), noise_level(last.step)
            passed = (level - last_level) / (last_level - noise_level(said[0].step))
            weight = self._options.trend * (1.0 - level / self._first_level) ** 2
            velocity += weight * passed * (velocity - said[0].velocity)
        return with_velocity(last.output, velocity)


class FittedForecasting(_Forecasting):
    """Combines the velocities of all guidance branches. More than two large steps of each gained nothing."""

    def __init__(self, options: Forecast, moments: VelocityMoments, pipe: Pipeline) -> None:
        super().__init__(options)
        self._moments, self._pipe = moments, pipe
        self._weights: dict[tuple[Place, ...], list[float]] = {}
        self._checked_generation = -1

    @hookimpl
    def flowblend_answer(self, call: DenoiserCall) -> Output:
        # What cannot be forecast is told at the first call, not in the middle.
        self._places(call.step)
        if self._options.as_calibrated and call.step.generation != self._checked_generation:
            self._check(call.step)
            self._checked_generation = call.step.generation
        return super().flowblend_answer(call)

    def _continued(self, step: StepContext, said: list[_Said]) -> Output:
        import torch

        last = said[-1]
        alike = [one for every in self._said.values() for one in every if one.velocity.shape == last.velocity.shape]
        known = [place for one in alike for place in self._places(one.step)]
        parts = [part.float() for one in alike for part in self._parts(one.velocity)]
        guesses = []
        for place in self._places(step):
            places = (place, *known)
            if places not in self._weights:
                self._weights[places] = self._moments.weights(place, known).tolist()
            weighted = zip(self._weights[places], parts, strict=True)
            guesses.append(sum(weight * part for weight, part in weighted))
        velocity = torch.cat(cast("list[torch.Tensor]", guesses))
        return with_velocity(last.output, velocity.to(last.velocity.dtype))

    def _parts(self, velocity: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A velocity by guidance branches, which a pipeline may ask for in one batch."""
        return velocity.chunk(2) if self._moments.is_batched else (velocity,)

    def _places(self, step: StepContext) -> tuple[Place, ...]:
        """Places of the parts of a call's velocity, in their order."""
        if step.timestep is None:
            raise StackError("'forecast': moments go by timesteps, and this sampler's cannot be read. Leave them out.")
        measured = self._moments.branches
        if self._moments.is_batched:
            if step.branch is None and guides_in_one_batch(self._pipe):
                return tuple(Place(branch, step.timestep) for branch in BATCHED_BRANCHES)
        elif step.branch in measured and not (step.branch is None and guides_in_one_batch(self._pipe)):
            return (Place(step.branch, step.timestep),)
        branches = ", ".join(map(str, measured))
        raise StackError(
            f"'forecast': the moments are of the guidance branches {branches}, and this call is of {step.branch}. "
            "Run `flowblend calibrate forecast` with the guidance of this call."
        )

    def _check(self, step: StepContext) -> None:
        own = self._moments.own_sampling
        assert own is not None, "the option needs it"
        found = own.sampler.differences(self._pipe.scheduler)
        if step.num_inference_steps != own.sampler.num_steps:
            found.append(f"{own.sampler.num_steps} steps, not {step.num_inference_steps}")
        guidance = getattr(self._pipe, "guidance_scale", None)
        if None not in (guidance, self._moments.guidance_scale) and guidance != self._moments.guidance_scale:
            found.append(f"guidance scale {self._moments.guidance_scale:g}, not {guidance:g}")
        if found:
            raise StackError(
                f"'forecast': this schedule was computed for {'; '.join(found[:4])}. Call the pipeline as it was "
                "calibrated, or run `flowblend calibrate forecast` and `flowblend plan` for this call."
            )
