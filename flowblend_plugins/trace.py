"""What ran: one record for every denoiser call of a generation, and the table a user reads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from .schedule import StageSchedule
from .step import StepContext

Outcome = Literal["compute", "reuse", "predict"]


class CallRecord(NamedTuple):
    """One answered denoiser call.

    ``shapes`` are the names and shapes of its tensor inputs (positional ones by number), from which its FLOPs are
    counted; ``time_ms`` is host time on a CPU, device time on CUDA.
    """

    step: StepContext
    outcome: Outcome
    time_ms: float
    shapes: tuple[tuple[str | int, tuple[int, ...]], ...]


@dataclass
class Generation:
    """The denoiser calls of one pipeline call, and the steps at which a denoiser entered."""

    index: int
    calls: list[CallRecord] = field(default_factory=list)
    entries: list[StepContext] = field(default_factory=list)
    error: str | None = None


class Trace:
    """Records of every generation since FlowBlending was enabled; :attr:`last` is the one most people want.

    :attr:`step` is where the denoiser call in progress stands, ``None`` between calls.
    """

    def __init__(self, denoisers: Mapping[str, nn.Module], schedule: StageSchedule) -> None:
        self.denoisers = dict(denoisers)
        self.schedule = schedule
        self.generations: list[Generation] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] | None = None
        self._outcome: Outcome = "compute"
        self.step: StepContext | None = None

    @property
    def last(self) -> Generation | None:
        return self.generations[-1] if self.generations else None

    def report_outcome(self, outcome: Outcome) -> None:
        """For adapters: say what the denoiser call in progress did, where it was not ``compute``."""
        self._outcome = outcome

    # -- written by the router -----------------------------------------------------------------------------------

    def begin(self, on_cuda: bool) -> None:
        self.generations.append(Generation(len(self.generations)))
        self._events = [] if on_cuda else None
        self._outcome = "compute"

    def start(self, step: StepContext) -> Any:
        """The moment a call starts: seconds on the host, or a CUDA event."""
        self.step = step
        if self._events is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def record(self, step: StepContext, started: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CallRecord:
        if self._events is None:
            time_ms = (time.perf_counter() - started) * 1e3
        else:  # resolved at the end: waiting for the device here would slow what is measured
            time_ms = float("nan")
            finished = torch.cuda.Event(enable_timing=True)
            finished.record()
            self._events.append((started, finished))
        shapes = [(name, value.shape) for name, value in kwargs.items() if isinstance(value, torch.Tensor)]
        if args:
            shapes = [(i, value.shape) for i, value in enumerate(args) if isinstance(value, torch.Tensor)] + shapes
        record = CallRecord(step, self._outcome, time_ms, tuple(shapes))
        self._outcome = "compute"
        self.step = None
        self.generations[-1].calls.append(record)
        return record

    def entered(self, step: StepContext) -> None:
        self.generations[-1].entries.append(step)

    def end(self, error: BaseException | None) -> None:
        generation = self.generations[-1]
        generation.error = None if error is None else f"{type(error).__name__}: {error}"
        self.step = None
        if self._events:
            torch.cuda.synchronize()
            times = [started.elapsed_time(finished) for started, finished in self._events]
            generation.calls = [c._replace(time_ms=t) for c, t in zip(generation.calls, times, strict=False)]
        self._events = None
