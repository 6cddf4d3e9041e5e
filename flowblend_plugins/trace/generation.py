"""One generation: a record for every denoiser call, what caches saved in it, and what it cost."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

from ..step import Outcome, StepContext
from .flops import CallInputs


class CallRecord(NamedTuple):
    """Record of one answered denoiser call.

    Attributes:
        step: where in its generation it stood, and which denoiser answered.
        outcome: ``compute`` unless an adapter reported otherwise.
        time_ms: device time on CUDA, host time elsewhere; nan on CUDA until the generation has ended without error.
        inputs: shapes and plain values of its inputs, from which its FLOPs are counted.
        skipped: of a call that was not all computed, the names of the modules that did not run, where the adapter
            knows them; none where the call as a whole was skipped.
        computed: the inputs that it was computed on, where an adapter left a part of the given ones out, or where its
            output was not the answer as it stood (``predict``).
        is_extra: a forward beside the one that answered, of which the pipeline knows nothing.
    """

    step: StepContext
    outcome: Outcome
    time_ms: float
    inputs: CallInputs
    skipped: frozenset[str] = frozenset()
    computed: CallInputs | None = None
    is_extra: bool = False

    @property
    def has_run(self) -> bool:
        """Whether the whole denoiser ran, whatever was then made of its output."""
        return self.outcome == "compute" or (self.computed is not None and not self.skipped)


@dataclass
class Generation:
    """The denoiser calls of one pipeline call, the steps at which a denoiser entered, and notes of the adapters."""

    index: int
    calls: list[CallRecord] = field(default_factory=list)
    entries: list[StepContext] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    def num_forwards(self, denoiser: str, outcome: Outcome) -> int:
        """Number of calls that a denoiser answered with this outcome."""
        return sum(call.step.denoiser == denoiser and call.outcome == outcome for call in self.calls)

    def saved(self) -> Saved:
        """Savings of its caches in calls and in time; the two differ, because reuse is not free."""
        num_saved, saved_ms = 0, 0.0
        for letter in {call.step.denoiser for call in self.calls}:
            own = [call for call in self.calls if call.step.denoiser == letter]
            cheap = [call.time_ms for call in own if not call.has_run]
            computed = [call.time_ms for call in own if call.has_run]
            num_saved += len(cheap)
            if cheap:
                saved_ms += len(cheap) * (statistics.median(computed) if computed else math.nan) - sum(cheap)
        spent_ms = sum(call.time_ms for call in self.calls)
        whole_ms = spent_ms + saved_ms
        calls_fraction = num_saved / len(self.calls) if self.calls else 0.0
        return Saved(num_saved, calls_fraction, saved_ms, saved_ms / whole_ms if whole_ms else 0.0)


class Saved(NamedTuple):
    """Savings of the caches in one generation.

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
