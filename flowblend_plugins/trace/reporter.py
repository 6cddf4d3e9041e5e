"""Live channel of one pipeline: adapters report what a call in progress does, and the router records it."""

from __future__ import annotations

import math
import threading
import time
from typing import Any, NamedTuple, TypeAlias

import torch

from ..step import Outcome, StepContext
from ..types import Args, KeywordsView
from .flops import CallInputs, describe_inputs
from .generation import CallRecord, Generation

_Moment: TypeAlias = Any
"""When a call started: seconds on the host's clock, or an event on a CUDA device's."""


class Answering(NamedTuple):
    """State of the channel before a ``flowblend_answer`` hook is asked."""

    num_calls: int
    started: _Moment


class CallReporter:
    """Reports on denoiser calls in progress, from which the records of a :class:`~flowblend_plugins.Trace` are made.

    Attributes:
        generations: what was recorded, shared with the trace.
        routed_thread: the thread whose denoiser calls are routed now; the router's to set.
    """

    def __init__(self) -> None:
        self.generations: list[Generation] = []
        self.routed_thread: int | None = None
        self._step: StepContext | None = None
        self._step_thread = 0
        self._device = torch.device("cpu")
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] | None = None
        self._forget()

    @property
    def step(self) -> StepContext | None:
        """Position of this thread's call in progress; ``None`` between calls, and for a call that is not routed."""
        return self._step if self._step is not None and self._step_thread == threading.get_ident() else None

    @step.setter
    def step(self, step: StepContext | None) -> None:
        self._step, self._step_thread = step, threading.get_ident()

    @property
    def is_routing(self) -> bool:
        """Whether what this thread does now belongs to a generation of the blend, and to no callback of the user's."""
        return self.routed_thread == threading.get_ident()

    @property
    def last(self) -> Generation | None:
        """The generation in progress, or the one that has just ended."""
        return self.generations[-1] if self.generations else None

    def report_outcome(self, outcome: Outcome, skipped: frozenset[str] = frozenset()) -> None:
        """Say what the denoiser call in progress did, where it was not ``compute``.

        Args:
            outcome: ``"reuse"`` or ``"predict"``.
            skipped: names of the modules that did not run, where all others did. They alone are then left out of the
                FLOPs; with none, the whole call is.
        """
        self._outcome, self._skipped = outcome, skipped

    def report_inputs(self, args: Args, kwargs: KeywordsView) -> None:
        """Say on which inputs the call in progress is computed, where not on those it was given.

        Its FLOPs are then counted from these; what the large denoiser would have cost still from those given.
        """
        self._computed = describe_inputs(args, kwargs)

    def note(self, text: str) -> None:
        """Add a line to the summary of the generation in progress, or the one that has just ended."""
        self.generations[-1].notes.append(text)

    # -- written by the router -----------------------------------------------------------------------------------

    def begin(self, device: torch.device) -> None:
        """A generation begins on this device."""
        self.generations.append(Generation(len(self.generations)))
        self._device = device
        self._events = [] if device.type == "cuda" else None
        self._forget()

    def start(self, step: StepContext) -> _Moment:
        """The moment a call starts: seconds on the host, or a CUDA event."""
        self.step = step
        return time.perf_counter() if self._events is None else self._event()

    def record(self, step: StepContext, started: _Moment, args: Args, kwargs: KeywordsView) -> CallRecord:
        if self._events is None:
            time_ms = (time.perf_counter() - started) * 1e3
        else:  # resolved at the end: waiting for the device here would slow what is measured
            time_ms = math.nan
            self._events.append((started, self._event()))
        record = CallRecord(step, self._outcome, time_ms, describe_inputs(args, kwargs), self._skipped, self._computed)
        self._forget()
        self.step = None
        self.generations[-1].calls.append(record)
        return record

    def begin_answer(self, step: StepContext) -> Answering:
        """A hook is asked to answer a call."""
        return Answering(len(self.generations[-1].calls), self.start(step))

    def end_answer(
        self, begun: Answering, step: StepContext, args: Args, kwargs: KeywordsView, is_predicted: bool
    ) -> None:
        """A hook has answered: of the forwards it made the last one is the answer, and the others are extra."""
        calls = self.generations[-1].calls
        if len(calls) == begun.num_calls:
            self._outcome = "predict"
            self.record(step, begun.started, args, kwargs)
            return
        for index in range(begun.num_calls, len(calls) - 1):
            calls[index] = calls[index]._replace(is_extra=True)
        last = calls[-1]
        if is_predicted and last.outcome == "compute":
            calls[-1] = last._replace(outcome="predict", computed=last.computed or last.inputs)
        self.step = None

    def entered(self, step: StepContext) -> None:
        self.generations[-1].entries.append(step)

    def end(self, error: BaseException | None) -> None:
        generation = self.generations[-1]
        generation.error = None if error is None else f"{type(error).__name__}: {error}"
        self.step = None
        if self._events and error is None:  # after an error the device may not answer any more
            torch.cuda.synchronize(self._device)
            times = [started.elapsed_time(finished) for started, finished in self._events]
            generation.calls = [c._replace(time_ms=t) for c, t in zip(generation.calls, times, strict=True)]
        self._events = None

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _forget(self) -> None:
        """Take the next call to be computed until an adapter says otherwise."""
        self._outcome: Outcome = "compute"
        self._skipped: frozenset[str] = frozenset()
        self._computed: CallInputs | None = None
