"""Difference of the large and the small velocity, kept from the last large step for each guidance branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flowblend_plugins.types import Args, Keywords, Output

if TYPE_CHECKING:
    import torch

    from flowblend_plugins import DenoiserCall, StepContext

SMALL = "S"


class LargeCall(NamedTuple):
    """A call that another denoiser than the small one answered, with inputs and output of its own."""

    step: StepContext
    args: Args
    kwargs: Keywords
    velocity: torch.Tensor


class Known(NamedTuple):
    """Both denoisers' velocities on the same latents.

    Attributes:
        step: where.
        residual: large minus small, of the denoiser's output shape.
        small: the small one's.
    """

    step: StepContext
    residual: torch.Tensor
    small: torch.Tensor


class Residuals:
    """State of one generation; a new one begins with nothing.

    The small denoiser is run on the last large step's inputs when it is first called after it, so a large step that is
    followed by another costs nothing.

    Args:
        num_kept: so many of the last large steps of each branch are kept.
    """

    def __init__(self, num_kept: int = 1) -> None:
        self._num_kept = num_kept
        self._generation = -1
        self._large: dict[str | None, list[LargeCall]] = {}
        self._known: dict[str | None, list[Known]] = {}
        self._last_index = -1

    def begin(self, step: StepContext) -> None:
        """Forget everything where a generation, or another pass over the timesteps, begins."""
        if step.generation != self._generation or step.step_index < self._last_index:
            self._large, self._known, self._generation = {}, {}, step.generation
        self._last_index = step.step_index

    def keep_large(self, call: DenoiserCall, output: Output) -> None:
        """Keep a large call, to be compared with the small denoiser if that is called next."""
        branch = call.step.branch
        own = LargeCall(call.step, _owned(call.args), dict(_owned(call.kwargs)), velocity_of(output).clone())
        self._large[branch] = [*self._large.get(branch, []), own][-self._num_kept :]
        self._known.pop(branch, None)

    def keep(self, step: StepContext, large: torch.Tensor, small: torch.Tensor) -> None:
        """Keep what both denoisers have said at one step."""
        self._large.pop(step.branch, None)
        self._known[step.branch] = [Known(step, large - small, small.clone())]

    def known(self, call: DenoiserCall) -> list[Known]:
        """The last large steps of this call's branch, the latest last; none before the first of them."""
        branch = call.step.branch
        if branch not in self._known and branch in self._large:
            self._known[branch] = [self._compare(call, large) for large in self._large.pop(branch)]
        return self._known.get(branch, [])

    def _compare(self, call: DenoiserCall, large: LargeCall) -> Known:
        step = large.step._replace(denoiser=SMALL)
        small = velocity_of(call.run_at(step, large.args, large.kwargs)).clone()
        return Known(large.step, large.velocity - small, small)


def velocity_of(output: Output) -> torch.Tensor:
    """The tensor of a denoiser's output, which is a tuple or has ``sample``."""
    return output[0] if isinstance(output, tuple) else output.sample


def with_velocity(output: Output, velocity: torch.Tensor) -> Output:
    """An output like this one with another tensor."""
    if isinstance(output, tuple):
        return (velocity, *output[1:])
    return type(output)(sample=velocity)


def noise_level(step: StepContext) -> float:
    """The sigma of a step; where the sampler has none, its timestep, which falls with it."""
    level = step.timestep if step.sigma is None else step.sigma
    assert level is not None, "a sampler has sigmas or timesteps"
    return level


def _owned(value: object) -> Any:
    """A copy that the pipeline cannot change; what is no tensor is shared."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (tuple, list)):
        return type(value)(_owned(one) for one in value)
    if isinstance(value, Mapping):
        return {name: _owned(one) for name, one in value.items()}
    return value
