"""The timestep that diffusers' attention caches ask for: that of the call, or none in a warm-up.

``PyramidAttentionBroadcast`` and ``FasterCache`` skip within a range of timesteps, and have no other switch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flowblend_plugins import AttachTarget, StackError

if TYPE_CHECKING:
    from flowblend_plugins import StepContext


class PipelineTimestep:
    """A ``current_timestep_callback`` for one denoiser, for caches that keep one state for all of its calls.

    Args:
        name: of the adapter, for the wording of errors.
        letter: of the denoiser.
        target: the blend.
    """

    def __init__(self, name: str, letter: str, target: AttachTarget) -> None:
        self._name, self._letter = name, letter
        self._trace = target.trace
        self._pipeline = target.pipeline
        self._timestep = math.inf
        self._last: StepContext | None = None

    def __call__(self) -> float:
        """Within no range outside a generation, where nobody knows the timestep."""
        return math.inf if self._trace.step is None else self._timestep

    def before_call(self, step: StepContext, is_warming_up: bool) -> None:
        """Take note of the call that is about to be made.

        Raises:
            StackError: it is the second call of a step, which would be answered from the state of the first.
        """
        last, self._last = self._last, step
        if last is not None and (last.generation, last.step_index) == (step.generation, step.step_index):
            raise StackError(
                f"{self._name!r} keeps one state for all calls of a denoiser, and {type(self._pipeline).__name__} "
                f"calls denoiser {self._letter} more than once at a step ({_branch(last)}, then {_branch(step)}), so "
                f"one call would be answered from the other's state. Call the pipeline with guidance_scale=1.0, leave "
                f"out {self._name!r}, or use a cache that tells branches apart."
            )
        self._timestep = math.inf if is_warming_up or step.timestep is None else self._noise_timestep(step.timestep)

    def _noise_timestep(self, timestep: float) -> float:
        """Counted down from pure noise, as ``pipe.current_timestep`` is: Mochi's sampler counts up."""
        config = self._pipeline.scheduler.config
        return config.num_train_timesteps - timestep if config.get("invert_sigmas") else timestep


def check_timestep_range(option: str, timesteps: tuple[int, int]) -> None:
    """Raise ``ValueError`` unless a timestep lies within (low, high), both excluded."""
    low, high = timesteps
    if low >= high:
        raise ValueError(f"{option}={timesteps!r}: expected (low, high) with low < high")


def _branch(step: StepContext) -> str:
    return "a call it does not name" if step.branch is None else repr(step.branch)
