"""Trace of every generation since FlowBlending was enabled, read by people and programs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import FlopCountError, FlowBlendError
from ..schedule import StageSchedule
from ..step import StepContext
from ..types import JsonObject
from .flops import FlopCounter
from .generation import Generation, GenerationFlops
from .reporter import CallReporter
from .summary import summarize


class Trace:
    """Records of the last generations since FlowBlending was enabled; :attr:`last` is the one most people want.

    A generation keeps its index when older ones are forgotten, and every method takes that index.

    Attributes:
        reporter: the live channel that adapters and the router write to.
        generations: what it recorded, the oldest first.
        max_generations: how many are kept, 100 unless it is set; ``None`` keeps all, which grows without end.
    """

    max_generations: int | None = 100

    def __init__(self, denoisers: Mapping[str, nn.Module], schedule: StageSchedule) -> None:
        self.denoisers: dict[str, nn.Module] = dict(denoisers)
        self.schedule = schedule
        self.reporter: CallReporter = CallReporter()
        self.generations: list[Generation] = []
        self._next_index = 0
        self._flop_counters = {letter: FlopCounter.of(module) for letter, module in self.denoisers.items()}

    @property
    def step(self) -> StepContext | None:
        """Position of the denoiser call in progress; ``None`` between calls."""
        return self.reporter.step

    @property
    def last(self) -> Generation | None:
        """The generation in progress, or the one that has just ended."""
        return self.generations[-1] if self.generations else None

    def clear(self) -> None:
        """Forget every generation so far; the next one's index goes on from the last one's."""
        self.generations.clear()

    def begin(self, device: torch.device) -> int:
        """Begin the next generation (the router does), and give its index; the oldest beyond the limit are dropped."""
        generation = Generation(self._next_index)
        self._next_index += 1
        self.generations.append(generation)
        if self.max_generations is not None:
            del self.generations[: -max(1, self.max_generations)]
        self.reporter.begin(generation, device)
        return generation.index

    def flops(self, generation: int = -1) -> GenerationFlops:
        """FLOPs that a generation cost. The first count of new input shapes takes seconds for a denoiser of billions.

        A call that was not computed (``reuse``, ``predict``) counts as what its cache says still ran. Where that is
        not known it counts as nothing, though a cache still runs its test and what stands outside the cached blocks:
        for such calls this is a lower bound.

        Args:
            generation: its index; -1 for the last, -2 for the one before it.

        Raises:
            FlopCountError: no denoiser call was made, or one cannot be counted from its shapes.
            FlowBlendError: there is no such generation.
        """
        return self._flops_of(self._generation(generation))

    def _flops_of(self, generation: Generation) -> GenerationFlops:
        calls = generation.calls
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
            flops = self._flops_of(chosen) if chosen.calls else ""
        except FlopCountError as error:
            flops = str(error)
        return summarize(chosen, self.schedule.text, flops)

    def to_dict(self) -> JsonObject:
        """All of it as JSON takes it: the schedule, the denoisers' classes, and what is kept, with its FLOPs."""
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
                    "flops": self._json_flops(generation),
                }
                for generation in self.generations
            ],
        }

    def _generation(self, index: int) -> Generation:
        held = self.generations
        found = [one for one in held if one.index == index] if index >= 0 else held[index : index + 1 or None]
        if not found:
            ask = (
                f"Ask for {held[0].index} to {held[-1].index}, or -1 for the last"
                if held
                else "Call the pipeline first"
            )
            raise FlowBlendError(f"generation {index} was asked for, but this trace holds {len(held)}. {ask}.")
        return found[0]

    def _json_flops(self, generation: Generation) -> JsonObject:
        try:
            return self._flops_of(generation)._asdict()
        except FlopCountError as error:
            return {"error": str(error)}


def _json_step(step: StepContext) -> JsonObject:
    position = {key: value for key, value in step._asdict().items() if key != "generation"}
    for key in ("sigma", "timestep"):  # zero terminal SNR has an infinite sigma, which JSON has not
        value = position[key]
        position[key] = value if value is not None and math.isfinite(value) else None
    return position | {"stage": step.stage.value}
