"""Not computing twice what two generations share: denoiser outputs are kept, and given again where they must be equal.

Two generations from one noise with one stack of adapters are the same, bit for bit, until their schedules part. So
the calls of the first are kept as a :class:`Recording`, and those that a second generation shares are answered from it,
while its pipeline, its sampler and its hooks run as always: solver state is right by construction, for any solver.

What is *not* right then is the state of a cache inside a denoiser that did not run. Such state is forgotten at a switch
with ``reentry="recompute"``, so a replay ends at a switch of the schedule that is run (or covers all of it), never
in the middle of a stage. Recordings are meant for figures of quality and for searches; a time measured with one is
worth nothing.

>>> with fb.enable(pipe, small, "LLL") as blend, blend.recorded() as large:  # doctest: +SKIP
...     pipe(prompt, generator=generator())
>>> with fb.enable(pipe, small, "LSL") as blend, blend.recorded([large]) as run:  # doctest: +SKIP
...     pipe(prompt, generator=generator())  # the early stage costs nothing
>>> run.num_replayed, run.num_computed  # doctest: +SKIP
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from ..contract.adapter import Adapter
from ..errors import RoutingError
from ..step import Outcome, StepContext
from ..types import Args, Output


class RecordedCall(NamedTuple):
    """One denoiser call: where it stood, a checksum of its inputs, what it gave, and what it did for that."""

    step: StepContext
    inputs: Args
    output: Output
    outcome: Outcome
    skipped: frozenset[str]


@dataclass
class Recording:
    """The denoiser calls of one generation. Its tensors stay where they were made; drop it to free them.

    Attributes:
        adapters, denoisers: what was enabled; a recording is of no use to another stack.
        letters: for every position in the sampler's list of timesteps, which denoiser answers.
        sampler: the sampler's class, configuration and lists of timesteps and sigmas.
        is_complete: the generation came to its end; only then may it be replayed.
        calls: in the order they were made.
        num_replayed: calls that were answered from an earlier recording; ``num_computed`` the others.
    """

    adapters: tuple[Adapter, ...]
    denoisers: Mapping[str, nn.Module]
    letters: tuple[str, ...] = ()
    sampler: Args = ()
    is_complete: bool = False
    calls: list[RecordedCall] = field(default_factory=list)
    num_replayed: int = 0

    @property
    def num_computed(self) -> int:
        return len(self.calls) - self.num_replayed


def replayable_steps(recorded: Sequence[str], wanted: Sequence[str]) -> int:
    """Number of leading positions of ``wanted`` that a generation on ``recorded`` answers exactly.

    All where the two are equal; else up to the last switch of ``wanted`` that both still share: behind a switch no
    denoiser remembers anything, before it a cache may.

    >>> replayable_steps("LLLLL", "LLSSL"), replayable_steps("LLSSS", "LLSSL"), replayable_steps("LLSSL", "LLSSS")
    (2, 4, 2)
    """
    if tuple(recorded) == tuple(wanted):
        return len(wanted)
    common = 0
    while common < min(len(recorded), len(wanted)) and recorded[common] == wanted[common]:
        common += 1
    if common == len(wanted):
        return 0  # of another length, so of another noise schedule
    while common and wanted[common] == wanted[common - 1]:
        common -= 1
    return common


class Tape:
    """Records one generation, and plays back what earlier ones have in common with it; the router asks it every call.

    Args:
        recording: what is being recorded; filled here.
        sources: earlier recordings, of which the one that shares most is played back.
    """

    def __init__(self, recording: Recording, sources: Sequence[Recording] = ()) -> None:
        self.recording = recording
        self._sources = sources
        self._source: list[RecordedCall] = []
        self._until = 0
        self._has_begun = False

    def start(self) -> None:
        """Begin to record a generation. Raises ``RoutingError`` for a second one."""
        if self._has_begun:
            raise RoutingError(
                "a second generation began while one was being recorded. Record one pipeline call at a time: "
                "`with blend.recorded() as recording: pipe(...)`."
            )
        self._has_begun = True

    def begin(self, letters: tuple[str, ...], sampler: Args) -> None:
        """The first call of the generation: which recording helps, and how far.

        Raises:
            RoutingError: a source is of another sampler.
        """
        self.recording.letters, self.recording.sampler = letters, sampler
        for source in self._sources:
            if source.sampler != sampler:
                raise RoutingError(
                    "a recording cannot be replayed with another sampler, number of steps or noise schedule than its "
                    "own. Record a generation with this one first."
                )
            until = replayable_steps(source.letters, letters)
            if until > self._until:
                self._source, self._until = source.calls, until

    def answer(self, step: StepContext, inputs: Args) -> RecordedCall | None:
        """Recorded answer to this very call; ``None`` if it must be computed.

        Raises:
            RoutingError: the recording is of another noise, prompt or call.
        """
        number = len(self.recording.calls)
        if step.step_index >= self._until or number >= len(self._source) or self.recording.num_replayed < number:
            return None
        found = self._source[number]
        place, recorded = step._replace(generation=0), found.step._replace(generation=0)
        # The stage's name may differ ("L:8,S:12" against "LSS"); where the call stands and who answers may not.
        if place._replace(stage=recorded.stage) != recorded or found.inputs != inputs:
            raise RoutingError(
                f"the recording does not fit: its call at step {recorded.step_index} ({recorded.branch or 'unnamed'}) "
                "had other inputs. Replay a recording only with its own prompt, seed, size and guidance."
            )
        self.recording.num_replayed += 1
        return found

    def keep(self, call: RecordedCall) -> None:
        """Add a call to the recording; a fresh output is copied, for pipelines may write into it."""
        self.recording.calls.append(call)


def copied(output: Output) -> Output:
    """A denoiser's output, to be kept or given away without its other holder noticing."""
    return copy.deepcopy(output)


def checksum(value: object) -> Any:
    """Checksum of a call's arguments: tensors by shape and bits, other values by what tells them apart."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().flatten()
        if flat.dtype == torch.bool or flat.is_complex():
            flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat.to(torch.uint8)
        words = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        places = torch.arange(1, words.numel() + 1, device=words.device) % 65521 + 1
        return tuple(value.shape), str(value.dtype), int((words.long() * places).sum())
    if isinstance(value, (tuple, list)):
        return tuple(checksum(item) for item in value)
    if isinstance(value, Mapping):
        return tuple((key, checksum(item)) for key, item in value.items())
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
