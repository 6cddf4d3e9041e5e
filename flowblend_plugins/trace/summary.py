"""A generation as the table that a user reads."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..step import OUTCOMES
from .generation import CallRecord, Generation, GenerationFlops


def summarize(generation: Generation, schedule: str, flops: GenerationFlops | str) -> str:
    """A row for each run of like steps, then totals with their counting conventions.

    Args:
        generation: what ran.
        schedule: its text, for the headline.
        flops: what it cost, or why that cannot be counted.
    """
    lines = [_headline(generation, schedule)]
    if generation.calls:
        lines += [
            "",
            _table(generation.calls),
            "",
            _forwards(generation),
            *_saved_line(generation),
            *generation.notes,
            *_flop_lines(flops),
        ]
    return "\n".join(lines)


def _flop_lines(flops: GenerationFlops | str) -> Iterator[str]:
    if isinstance(flops, str):
        yield f"FLOPs: {flops}"
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


class _Row(NamedTuple):
    """One table row: the calls of one denoiser in a run of steps."""

    first_step: int
    last_step: int
    calls: list[CallRecord]


def _rows(calls: Sequence[CallRecord]) -> Iterator[_Row]:
    """Consecutive steps in which the same denoisers answer the same branches; in each run a row for each denoiser."""
    steps = [list(group) for _, group in itertools.groupby(calls, key=lambda call: call.step.step_index)]

    def likeness(step: list[CallRecord]) -> set[tuple[object, ...]]:
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
    seen = {call.outcome for call in calls}
    shown = [outcome for outcome in OUTCOMES if outcome in seen]  # it fits into 80 columns where a cache has one
    for heading in ("steps", "stage", "by", "branches"):
        table.add_column(heading)
    for heading in (*shown, "ms", "ms each"):
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
            *(str(outcomes[outcome]) for outcome in shown),
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
        told = f"which saved {saved.time_fraction:.0%} of the time in the denoisers"
        if not math.isfinite(saved.time_ms):
            told = "and the time that it saved is not known, for there is no timed call to compare with"
        yield f"Not computed: {saved.calls_fraction:.0%} of the calls, {told}."


def _flops_text(flops: int) -> str:
    """FLOPs as text, with TFLOPs as the largest unit, since published totals are given in it."""
    unit, scale = next(((u, s) for u, s in (("TFLOPs", 1e12), ("GFLOPs", 1e9)) if flops >= s), ("MFLOPs", 1e6))
    value = flops / scale
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"
