"""What ran: one record for every denoiser call of a generation, what it cost, and the table a user reads."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from .errors import FlopCountError, FlowBlendError
from .flops import CallInputs, FlopCounter, describe_inputs
from .schedule import StageSchedule
from .step import StepContext

Outcome = Literal["compute", "reuse", "predict"]
OUTCOMES: tuple[Outcome, ...] = ("compute", "reuse", "predict")


class CallRecord(NamedTuple):
    """One answered denoiser call.

    Attributes:
        step: where in its generation it stood, and which denoiser answered.
        outcome: ``compute`` unless an adapter reported otherwise.
        time_ms: device time on CUDA, host time elsewhere; nan on CUDA until the generation has ended without error.
        inputs: shapes and plain values of its inputs, from which its FLOPs are counted.
        skipped: of a call that was not all computed, the names of the modules that did not run, where the adapter
            knows them; none where the call as a whole was skipped.
    """

    step: StepContext
    outcome: Outcome
    time_ms: float
    inputs: CallInputs
    skipped: frozenset[str] = frozenset()


@dataclass
class Generation:
    """The denoiser calls of one pipeline call, the steps at which a denoiser entered, and notes of the adapters."""

    index: int
    calls: list[CallRecord] = field(default_factory=list)
    entries: list[StepContext] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    def num_forwards(self, denoiser: str, outcome: Outcome) -> int:
        """How many calls a denoiser answered with this outcome."""
        return sum(call.step.denoiser == denoiser and call.outcome == outcome for call in self.calls)

    def saved(self) -> Saved:
        """What its caches saved, in calls and in time; the two differ, because answering from a cache is not free."""
        num_saved, saved_ms = 0, 0.0
        for letter in {call.step.denoiser for call in self.calls}:
            own = [call for call in self.calls if call.step.denoiser == letter]
            cheap = [call.time_ms for call in own if call.outcome != "compute"]
            computed = [call.time_ms for call in own if call.outcome == "compute"]
            num_saved += len(cheap)
            if cheap:
                saved_ms += len(cheap) * (statistics.median(computed) if computed else math.nan) - sum(cheap)
        spent_ms = sum(call.time_ms for call in self.calls)
        return Saved(num_saved, num_saved / len(self.calls), saved_ms, saved_ms / (spent_ms + saved_ms))


class Saved(NamedTuple):
    """What caches saved in one generation.

    Attributes:
        num_calls: denoiser calls that were reused or predicted.
        calls_fraction: as a fraction of all calls.
        time_ms: time they would have cost beyond what they did, at their denoiser's median computed call; nan where
            a denoiser computed none, or where the times are not known.
        time_fraction: as a fraction of the time that all calls would then have taken.
    """

    num_calls: int
    calls_fraction: float
    time_ms: float
    time_fraction: float


class GenerationFlops(NamedTuple):
    """FLOPs of one generation, 2 per multiply-add, over the denoiser calls really made (every guidance branch).

    Attributes:
        linear: linear layers only, as the paper counts.
        full: with attention products and convolutions.
        linear_fraction_of_large, full_fraction_of_large: as a fraction of what the large denoiser would have cost if it
            had computed every one of the same calls. Steps that were never made are in neither.
    """

    linear: int
    full: int
    linear_fraction_of_large: float
    full_fraction_of_large: float


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
        self._device = torch.device("cpu")
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] | None = None
        self._flop_counters = {letter: FlopCounter.of(module) for letter, module in self.denoisers.items()}

    @property
    def last(self) -> Generation | None:
        return self.generations[-1] if self.generations else None

    def report_outcome(self, outcome: Outcome, skipped: frozenset[str] = frozenset()) -> None:
        """For adapters: say what the denoiser call in progress did, where it was not ``compute``.

        Args:
            outcome: ``"reuse"`` or ``"predict"``.
            skipped: names of the modules that did not run, where all others did. They alone are then left out of the
                FLOPs; with none, the whole call is.
        """
        self._outcome, self._skipped = outcome, skipped

    def note(self, text: str) -> None:
        """For adapters: a line on the generation in progress, or the one that has just ended, shown in its summary."""
        self.generations[-1].notes.append(text)

    # -- written by the router -----------------------------------------------------------------------------------

    def begin(self, device: torch.device) -> None:
        """A generation begins on this device."""
        self.generations.append(Generation(len(self.generations)))
        self._device = device
        self._events = [] if device.type == "cuda" else None
        self._outcome, self._skipped = "compute", frozenset()

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
        record = CallRecord(step, self._outcome, time_ms, describe_inputs(args, kwargs), self._skipped)
        self._outcome, self._skipped = "compute", frozenset()
        self.step = None
        self.generations[-1].calls.append(record)
        return record

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
        """What a generation cost. The first count of new input shapes takes seconds for a denoiser of billions.

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
            if call.outcome == "compute" or call.skipped:
                spent = self._flop_counters[call.step.denoiser].count(call.inputs, call.skipped)
                linear, full = linear + spent.linear, full + spent.total
            large = self._flop_counters["L"].count(call.inputs)
            large_linear, large_full = large_linear + large.linear, large_full + large.total
        return GenerationFlops(linear, full, linear / large_linear, full / large_full)

    def summary(self, generation: int = -1) -> str:
        """A generation as a table: a row for each run of like steps, then totals with their counting conventions."""
        if not self.generations and generation == -1:
            return f"{self.schedule.text}: no generation yet. Call the pipeline, then ask again."
        chosen = self._generation(generation)
        lines = [_headline(chosen, self.schedule.text)]
        if chosen.calls:
            lines += [
                "",
                _table(chosen.calls),
                "",
                _forwards(chosen),
                *_saved_line(chosen),
                *chosen.notes,
                *self._flop_lines(generation),
            ]
        return "\n".join(lines)

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

    def _flop_lines(self, generation: int) -> Iterator[str]:
        try:
            flops = self.flops(generation)
        except FlopCountError as error:
            yield f"FLOPs: {error}"
            return
        yield (
            f"FLOPs, linear layers only (the paper's count): {_flops_text(flops.linear)}, "
            f"{flops.linear_fraction_of_large:.1%} of large-only."
        )
        yield (
            f"FLOPs, full (attention products and convolutions too): {_flops_text(flops.full)}, "
            f"{flops.full_fraction_of_large:.1%} of large-only."
        )
        yield (
            "2 FLOPs per multiply-add; every guidance branch counts; of a reused or predicted call, what is known to "
            "have run; large-only: L in all."
        )

    def _json_flops(self, index: int) -> dict[str, Any]:
        try:
            return self.flops(index)._asdict()
        except FlopCountError as error:
            return {"error": str(error)}


class _Row(NamedTuple):
    """What one denoiser did in a run of steps."""

    first_step: int
    last_step: int
    calls: list[CallRecord]


def _rows(calls: Sequence[CallRecord]) -> Iterator[_Row]:
    """Consecutive steps in which the same denoisers answer the same branches; in each run a row for each denoiser."""
    steps = [list(group) for _, group in itertools.groupby(calls, key=lambda call: call.step.step_index)]

    def likeness(step: list[CallRecord]) -> Any:
        return {(call.step.stage, call.step.denoiser, call.step.branch) for call in step}

    run: list[list[CallRecord]] = []
    for step in [*steps, None]:
        if run and (
            step is None
            or likeness(step) != likeness(run[-1])
            or step[0].step.step_index < run[-1][0].step.step_index  # another pass over the timesteps
        ):
            of_run = [call for step_calls in run for call in step_calls]
            for letter in dict.fromkeys(call.step.denoiser for call in of_run):
                row = [call for call in of_run if call.step.denoiser == letter]
                yield _Row(run[0][0].step.step_index, run[-1][0].step.step_index, row)
            run = []
        if step is not None:
            run.append(step)


def _headline(generation: Generation, schedule: str) -> str:
    calls = generation.calls
    text = f"Generation {generation.index}, {schedule}: "
    if calls:
        time_ms = sum(call.time_ms for call in calls)
        text += f"{calls[0].step.num_inference_steps} steps, {len(calls)} denoiser calls"
        if math.isfinite(time_ms):
            text += f", {time_ms:.0f} ms in them" if time_ms < 1e4 else f", {time_ms / 1e3:.1f} s in them"
    else:
        text += "no denoiser call"
    return f"{text}; failed with {generation.error.splitlines()[0]}" if generation.error else f"{text}."


def _table(calls: Sequence[CallRecord]) -> str:
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.MARKDOWN)  # plain characters: any terminal shows it, and it pastes into an issue
    for heading in ("steps", "stage", "denoiser", "branches"):
        table.add_column(heading)
    for heading in (*OUTCOMES, "total ms", "median ms"):
        table.add_column(heading, justify="right")
    for row in _rows(calls):
        step = row.calls[0].step
        first, last = row.first_step + 1, row.last_step + 1  # people count from 1, as StageSchedule.describe does
        outcomes = Counter(call.outcome for call in row.calls)
        times = [call.time_ms for call in row.calls]
        timed = all(map(math.isfinite, times))
        table.add_row(
            f"{first}" if first == last else f"{first}-{last}",
            step.stage.value,
            step.denoiser,
            ", ".join(dict.fromkeys(call.step.branch or "not named" for call in row.calls)),
            *(str(outcomes[outcome]) for outcome in OUTCOMES),
            f"{sum(times):.1f}" if timed else "-",
            f"{statistics.median(times):.2f}" if timed else "-",
        )
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line for line in map(str.rstrip, printed.splitlines()) if line)


def _forwards(generation: Generation) -> str:
    totals = []
    for letter in dict.fromkeys(call.step.denoiser for call in generation.calls):
        counts = {outcome: generation.num_forwards(letter, outcome) for outcome in OUTCOMES}
        totals.append(f"{letter} " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n))
    return f"Forwards: {'; '.join(totals)}."


def _saved_line(generation: Generation) -> Iterator[str]:
    saved = generation.saved()
    if saved.num_calls:
        time = f"{saved.time_fraction:.0%} of the time" if math.isfinite(saved.time_ms) else "time not known"
        yield f"Not computed: {saved.calls_fraction:.0%} of the calls, which saved {time} in the denoisers."


def _flops_text(flops: int) -> str:
    """With TFLOPs as the largest unit, since published totals are given in it."""
    unit, scale = next(((u, s) for u, s in (("TFLOPs", 1e12), ("GFLOPs", 1e9)) if flops >= s), ("MFLOPs", 1e6))
    value = flops / scale
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def _json_step(step: StepContext) -> dict[str, Any]:
    position = {key: value for key, value in step._asdict().items() if key != "generation"}
    for key in ("sigma", "timestep"):  # zero terminal SNR has an infinite sigma, which JSON has not
        value = position[key]
        position[key] = value if value is not None and math.isfinite(value) else None
    return position | {"stage": step.stage.value}
