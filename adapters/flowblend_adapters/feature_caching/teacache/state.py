"""State of an attached TeaCache, kept apart for each denoiser and guidance branch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from flowblend_plugins import RoutingError, StepContext, hookimpl
from flowblend_plugins.trace.reporter import CallReporter
from flowblend_plugins.types import Denoiser, KeywordsView

from ..observed_calls import CallPlace, CallPlaces
from .block_stack import BlockStack
from .entries import Entries
from .rule import Accumulator, SkipRule
from .signals import layout_of, relative_change


@dataclass
class _Memory:
    """State of one guidance branch of one denoiser."""

    signal: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    accumulator: Accumulator = field(default_factory=Accumulator)


class DenoiserCache:
    """Decides for one denoiser, call by call, and keeps the residual of each of its guidance branches."""

    def __init__(self, denoiser: Denoiser, signal: str, rule: SkipRule, trace: CallReporter) -> None:
        self._rule, self._trace = rule, trace
        self._signal = layout_of(denoiser).signals[signal]
        self._memories: dict[CallPlace, _Memory] = {}
        self._current: _Memory | None = None
        self.stack = BlockStack(denoiser, self, (signal,))
        self.forget()

    def forget(self) -> None:
        self._memories.clear()
        self._current = None
        self._places = CallPlaces()

    def enter(self, step: StepContext, first_index: int) -> None:
        """The denoiser begins to answer at this step of a generation that began at ``first_index``."""
        if not self.stack.is_intact:
            raise RoutingError(
                f"blocks of denoiser {step.denoiser} were replaced after 'teacache' was put on it. Call disable(), "
                "then enable() again."
            )
        self._first_index, self._entered_index = first_index, step.step_index

    def entering(self, block: nn.Module, arguments: KeywordsView, time: torch.Tensor | None) -> bool | torch.Tensor:
        step = self._trace.step
        if step is None:  # no call of the pipeline, so no step to compare with another
            return False
        memory = self._current = self._memories.setdefault(self._places.of(step), _Memory())
        signal = self._signal(block, arguments, time).detach().clone()
        before, memory.signal = memory.signal, signal
        residual = memory.residual
        if before is None or residual is None or not self._may_reuse(step, arguments["hidden_states"], residual):
            memory.accumulator.distance = 0.0
            return True
        if not self._rule.reuses(memory.accumulator, relative_change(signal, before)):
            memory.accumulator.distance = 0.0
            return True
        self._trace.report_outcome("reuse", self.stack.block_names)
        return residual

    def computed(self, residual: torch.Tensor) -> None:
        assert self._current is not None, "only a call that was entered is computed"
        self._current.residual = residual.detach()

    def _may_reuse(self, step: StepContext, hidden_states: torch.Tensor, residual: torch.Tensor) -> bool:
        """A batch that changes (guidance that pauses where both branches are one call) has no residual to reuse."""
        is_forced = self._rule.is_forced(
            step.step_index, step.num_inference_steps, self._first_index, self._entered_index
        )
        return not is_forced and residual.shape == hidden_states.shape


class TeaCacheState:
    """The caches of one blend; hears when denoisers enter and when a generation is over."""

    def __init__(self, trace: CallReporter) -> None:
        self._trace = trace
        self._caches: dict[int, DenoiserCache] = {}
        self._entries = Entries()

    @contextmanager
    def watching(self, denoiser: Denoiser, signal: str, rule: SkipRule) -> Iterator[None]:
        """The cache is on this denoiser."""
        cache = self._caches[id(denoiser)] = DenoiserCache(denoiser, signal, rule, self._trace)
        with cache.stack.attached():
            yield

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext, denoiser: Denoiser, reentry: str) -> None:
        must_forget = self._entries.note(step, denoiser, reentry)
        cache = self._caches.get(id(denoiser))
        if cache is None:
            return
        if must_forget:
            cache.forget()
        cache.enter(step, self._entries.first_index)

    @hookimpl
    def flowblend_generation_finished(self) -> None:
        self._entries.clear()
        for cache in self._caches.values():
            cache.forget()
