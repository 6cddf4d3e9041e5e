"""Forecast: in the small denoiser's steps the large one's last velocities are continued, and no denoiser is called.

``v(x, t) = v_k + w (t - t_k) / (t_k - t_j) (v_k - v_j)``, of the last two large steps ``j < k``, for each guidance
branch, with ``w = trend (1 - t / t_0)^2``: where there is much noise the last velocity is the better guess, and towards
the end the line through the last two. Here ``t`` is the noise level and ``t_0`` the generation's first. TaylorSeer
(arXiv 2503.06923) continues features inside the denoiser, in steps counted; this continues its answer, in noise levels,
where the router says. docs/blending.md has what was measured.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, hookimpl
from flowblend_plugins.traits import Family

from .residual import SMALL, noise_level, velocity_of, with_velocity

if TYPE_CHECKING:
    import torch

    from flowblend_plugins.call import DenoiserCall
    from flowblend_plugins.step import StepContext


@dataclass(frozen=True, kw_only=True)
class Forecast(Adapter):
    """Answer the small denoiser's steps from the large one's last velocities.

    Steps before the first large one are the small denoiser's own.

    Args:
        recall_every: of so many small steps in a row, the last is the large denoiser's; 1 calls it at every step,
            0 never.
        trend: weight of the change between the last two large steps where no noise is left; 0 gives the last velocity
            again.
    """

    recall_every: int = 2
    trend: float = 1.0

    name: ClassVar[str] = "forecast"
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

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[_Forecasting]:
        yield _Forecasting(self)


class _Said(NamedTuple):
    """What the large denoiser said at a step: its output, whose tensor is a copy."""

    step: StepContext
    output: Any

    @property
    def velocity(self) -> torch.Tensor:
        return velocity_of(self.output)


class _Forecasting:
    def __init__(self, options: Forecast) -> None:
        self._options = options
        self._said: dict[str | None, list[_Said]] = {}
        self._generation = self._last_index = -1
        self._first_level = 1.0

    @hookimpl
    def flowblend_answer(self, call: DenoiserCall) -> Any:
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

    def _continued(self, step: StepContext, said: list[_Said]) -> Any:
        last = said[-1]
        velocity = last.velocity.clone()  # a pipeline may write into what it is given
        if self._options.trend and len(said) > 1:
            level, last_level = noise_level(step), noise_level(last.step)
            passed = (level - last_level) / (last_level - noise_level(said[0].step))
            weight = self._options.trend * (1.0 - level / self._first_level) ** 2
            velocity += weight * passed * (velocity - said[0].velocity)
        return with_velocity(last.output, velocity)
