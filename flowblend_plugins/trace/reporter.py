"""Live channel of one pipeline: adapters report what a call in progress does, and the router records it."""

from __future__ import annotations

import math
import threading
import time
from typing import Any, NamedTuple, TypeAlias

import torch

from ..errors import PluginError
from ..step import OUTCOMES, Outcome, StepContext
from ..types import Args, KeywordsView
from .flops import CallInputs, describe_inputs
from .generation import CallRecord, Generation

_Moment: TypeAlias = Any
"""When a call started: seconds on the host's clock, or an event on a CUDA device's."""


class Told(NamedTuple):
    """Reports on a call in progress: its outcome, modules that did not run, and other inputs than the given ones."""

    outcome: Outcome = "compute"
    skipped: frozenset[str] = frozenset()
    computed: CallInputs | None = None


class Answering(NamedTuple):
    """State of the channel before a ``flowblend_answer`` hook is asked."""

    num_calls: int
    started: _Moment


class CallReporter:
    """Reports on denoiser calls in progress, from which the records of a :class:`~flowblend_plugins.Trace` are made.

    Attributes:
        last: the generation in progress, or the one that has just ended.
        routed_thread: the thread whose denoiser calls are routed now; the router's to set.
        told: reports on the call in progress so far.
    """

    def __init__(self) -> None:
        self.last: Generation | None = None
        self.routed_thread: int | None = None
        self._step: StepContext | None = None
        self._step_thread = 0
        self._device = torch.device("cpu")
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] | None = None
        self.told = Told()

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

    def report_outcome(self, outcome: Outcome, skipped: frozenset[str] = frozenset()) -> None:
        """Say what the denoiser call in progress did, where it was not ``compute``.

        From a ``flowblend_answer`` hook it is said of the answer, whatever the denoisers did that the hook ran for it.

        Args:
            outcome: ``"reuse"`` or ``"predict"``.
            skipped: names of the modules that did not run, where all others did. They alone are then left out of the
                FLOPs; with none, the whole call is.

        Raises:
            PluginError: there is no such outcome.
        """
        if outcome not in OUTCOMES:
            raise PluginError(f"report_outcome({outcome!r}): expected one of {', '.join(map(repr, OUTCOMES))}.")
        self.told = self.told._replace(outcome=outcome, skipped=skipped)

    def report_inputs(self, args: Args, kwargs: KeywordsView) -> None:
        """Say on which inputs the call in progress is computed, where not on those it was given.

        Its FLOPs are then counted from these; what the large denoiser would have cost still from those given.
        """
        self.told = self.told._replace(computed=describe_inputs(args, kwargs))

    def note(self, text: str) -> None:
        """Add a line to the summary of the generation in progress, or the one that has just ended."""
        self._generation.notes.append(text)

    # -- written by the router -----------------------------------------------------------------------------------

    def begin(self, generation: Generation, device: torch.device) -> None:
        """A generation begins on this device."""
        self.last = generation
        self._device = device
        self._events = [] if device.type == "cuda" else None
        self.told = Told()

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
        record = CallRecord(step, self.told.outcome, time_ms, describe_inputs(args, kwargs), *self.told[1:])
        self.told = Told()
        self.step = None
        self._generation.calls.append(record)
        return record

    def begin_answer(self, step: StepContext) -> Answering:
        """A hook is asked to answer a call."""
        return Answering(len(self._generation.calls), self.start(step))

    def end_answer(
        self, begun: Answering, step: StepContext, args: Args, kwargs: KeywordsView, is_predicted: bool
    ) -> None:
        """A hook has answered: of the forwards it made the last one is the answer, and the others are extra."""
        calls = self._generation.calls
        told = self.told.outcome
        if len(calls) == begun.num_calls:
            if told == "compute":
                self.report_outcome("predict")
            self.record(step, begun.started, args, kwargs)
            return
        self.told = Told()
        for index in range(begun.num_calls, len(calls) - 1):
            calls[index] = calls[index]._replace(is_extra=True)
        last = calls[-1]
        if told == "compute":
            told = "predict" if is_predicted and last.outcome == "compute" else last.outcome
        if told != last.outcome:
            computed = last.computed or (last.inputs if last.has_run else None)
            calls[-1] = last._replace(outcome=told, computed=computed)
        self.step = None

    def entered(self, step: StepContext) -> None:
        self._generation.entries.append(step)

    def end(self, error: BaseException | None) -> None:
        generation = self._generation
        generation.error = None if error is None else f"{type(error).__name__}: {error}"
        self.step = None
        if self._events and error is None:  # after an error the device may not answer any more
            torch.cuda.synchronize(self._device)
            times = [started.elapsed_time(finished) for started, finished in self._events]
            generation.calls = [c._replace(time_ms=t) for c, t in zip(generation.calls, times, strict=True)]
        self._events = None

    @property
    def _generation(self) -> Generation:
        assert self.last is not None
        return self.last

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
