"""Denoisers that have entered in this pass over the timesteps, which says whose state is stale."""

from __future__ import annotations

from flowblend_plugins import StepContext
from flowblend_plugins.types import Denoiser


class Entries:
    """Follows ``flowblend_stage_entered`` through one generation after another.

    Attributes:
        first_index: first step of this pass; above 0 in video-to-video.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.first_index = 0
        self._entered: set[int] = set()
        self._last: tuple[int, int] | None = None

    def note(self, step: StepContext, denoiser: Denoiser, reentry: str) -> bool:
        """A denoiser enters; whether it must forget what it has."""
        # Some pipelines pass over their timesteps more than once. Two denoisers may enter at one step, one never twice.
        this = step.step_index, id(denoiser)
        if self._last is None or step.step_index < self._last[0] or this == self._last:
            self.clear()
            self.first_index = step.step_index
        self._last = this
        is_new = id(denoiser) not in self._entered
        self._entered.add(id(denoiser))
        return is_new or reentry == "recompute"
