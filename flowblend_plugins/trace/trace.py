"""Trace of every generation since FlowBlending was enabled, read by people and programs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import FlopCountError, FlowBlendError
from ..schedule import StageSchedule
from ..step import StepContext
from .flops import CallInputs, FlopCounter, describe_inputs
from .generation import CallRecord, Generation, GenerationFlops, Outcome
from .summary import summarize


class Answering(NamedTuple):
    """The state of a trace before a ``flowblend_answer`` hook is asked."""

    num_calls: int
    started: Any


class Trace:
    """Records of every generation since FlowBlending was enabled; :attr:`last` is the one most people want.

    :attr:`step` is where the denoiser call in progress stands, ``None`` between calls. A process that generates for
    days may empty :attr:`generations` between two calls.
    """

    def __init__(self, denoisers: Mapping[str, nn.Module], schedule: StageSchedule) -> None:
        self.denoisers = dict(denoisers)
        self.schedule = schedule
        self.generations: list[Generation] = []
        self.step: StepContext | None = None
        self._outcome: Outcome = "compute"
        self._skipped: frozenset[str] = frozenset()
        self._computed: CallInputs | None = None
        self._device = torch.device("cpu")
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] | None = None
        self._flop_counters = {letter: FlopCounter.of(module) for letter, module in self.denoisers.items()}

    @property
    def last(self) -> Generation | None:
        return self.generations[-1] if self.generations else None

    def report_outcome(self, outcome: Outcome, skipped: frozenset[str] = frozenset()) -> None:
        """Say what the denoiser call in progress did, where it was not ``compute`` (for adapters).

        Args:
            outcome: ``"reuse"`` or ``"predict"``.
            skipped: names of the modules that did not run, where all others did. They alone are then left out of the
                FLOPs; with none, the whole call is.
        """
        self._outcome, self._skipped = outcome, skipped

    def report_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Say on which inputs the call in progress is computed, where not on those it was given (for adapters).

        Its FLOPs are then counted from these; what the large denoiser would have cost still from those given.
        """
        self._computed = describe_inputs(args, kwargs)

    def note(self, text: str) -> None:
        """Add a line to the summary of the generation in progress, or the one that has just ended (for adapters)."""
        self.generations[-1].notes.append(text)

    # -- written by the router -----------------------------------------------------------------------------------

    def begin(self, device: torch.device) -> None:
        """A generation begins on this device."""
        self.generations.append(Generation(len(self.generations)))
        self._device = device
        self._events = [] if device.type == "cuda" else None
        self._outcome, self._skipped, self._computed = "compute", frozenset(), None

    def start(self, step: StepContext) -> Any:
        """The moment a call starts: seconds on the host, or a CUDA event."""
        self.step = step
        return time.perf_counter() if self._events is None else self._event()

    def record(self, step: StepContext, started: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CallRecord:
        if self._events is None:
            time_ms = (time.perf_counter() - started) * 1e3
        else:  # resolved at the end: waiting for the device here would slow what is measured
            time_ms = math.nan
            self._events.append((started, self._event()))
        record = CallRecord(step, self._outcome, time_ms, describe_inputs(args, kwargs), self._skipped, self._computed)
        self._outcome, self._skipped, self._computed = "compute", frozenset(), None
        self.step = None
        self.generations[-1].calls.append(record)
        return record

    def begin_answer(self, step: StepContext) -> Answering:
        """A hook is asked to answer a call."""
        return Answering(len(self.generations[-1].calls), self.start(step))

    def end_answer(
        self, begun: Answering, step: StepContext, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_predicted: bool
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

    # -- read by people and programs -----------------------------------------------------------------------------

    def flops(self, generation: int = -1) -> GenerationFlops:
        """FLOPs that a generation cost. The first count of new input shapes takes seconds for a denoiser of billions.

        A call that was not computed (``reuse``, ``predict``) counts as what its cache says still ran. Where that is
        not known it counts as nothing, though a cache still runs its test and what stands outside the cached blocks:
        for such calls this is a lower bound.

        Args:
            generation: its index; -1 for the last.

        Raises:
            FlopCountError: no denoiser call was made, or one cannot be counted from its shapes.
            FlowBlendError: there is no such generation.
        """
        calls = self._generation(generation).calls
        if not calls:
            raise FlopCountError("the generation made no denoiser call, so there are no FLOPs to count.")
        linear = full = large_linear = large_full = 0
        for call in calls:
            if call.has_run or call.skipped:
                spent = self._flop_counters[call.step.denoiser].count(call.computed or call.inputs, call.skipped)
                linear, full = linear + spent.linear, full + spent.total
            if not call.is_extra:
                large = self._flop_counters["L"].count(call.inputs)
                large_linear, large_full = large_linear + large.linear, large_full + large.total
        return GenerationFlops(linear, full, linear / large_linear, full / large_full)

    def summary(self, generation: int = -1) -> str:
        """A generation as a table: a row for each run of like steps, then totals with their counting conventions."""
        if not self.generations and generation == -1:
            return f"{self.schedule.text}: no generation yet. Call the pipeline, then ask again."
        chosen = self._generation(generation)
        try:
            flops = self.flops(generation) if chosen.calls else ""
        except FlopCountError as error:
            flops = str(error)
        return summarize(chosen, self.schedule.text, flops)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it: the schedule, the denoisers' classes, and every generation with its FLOPs."""
        return {
            "schedule": self.schedule.text,
            "denoisers": {letter: type(module).__name__ for letter, module in self.denoisers.items()},
            "generations": [
                {
                    "index": generation.index,
                    "error": generation.error,
                    "calls": [
                        {
                            **_json_step(call.step),
                            "outcome": call.outcome,
                            "is_extra": call.is_extra,
                            "time_ms": call.time_ms if math.isfinite(call.time_ms) else None,
                        }
                        for call in generation.calls
                    ],
                    "entries": [_json_step(step) for step in generation.entries],
                    "notes": list(generation.notes),
                    "flops": self._json_flops(index),
                }
                for index, generation in enumerate(self.generations)
            ],
        }

    def _generation(self, index: int) -> Generation:
        try:
            return self.generations[index]
        except IndexError:
            held = len(self.generations)
            raise FlowBlendError(
                f"generation {index} was asked for, but this trace holds {held}. "
                + (f"Ask for 0 to {held - 1}, or -1 for the last." if held else "Call the pipeline first.")
            ) from None

    def _json_flops(self, index: int) -> dict[str, Any]:
        try:
            return self.flops(index)._asdict()
        except FlopCountError as error:
            return {"error": str(error)}


def _json_step(step: StepContext) -> dict[str, Any]:
    position = {key: value for key, value in step._asdict().items() if key != "generation"}
    for key in ("sigma", "timestep"):  # zero terminal SNR has an infinite sigma, which JSON has not
        value = position[key]
        position[key] = value if value is not None and math.isfinite(value) else None
    return position | {"stage": step.stage.value}
