"""Generate with one loaded pair, with FlowBlending on or off, and time it.

A pipeline of stills (``.images``) makes videos of one frame as far as the matrix is concerned.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flowblend_plugins import Blend, enable
from flowblend_plugins.cli.call import refuse_unknown_arguments
from flowblend_plugins.contract.adapter import arguments_set_by
from flowblend_plugins.contract.traits import refusals_audited
from flowblend_plugins.errors import RoutingError
from flowblend_plugins.manager import make_adapters, make_plugin_manager
from flowblend_plugins.routing.replay import Recording
from flowblend_plugins.types import Keywords, Output, Pipeline

from ..results.cells import CellSpec, Stack
from .prompts import PromptSet

Videos = NDArray[np.float32]


class Timed(NamedTuple):
    """Latents of one generation, and its time: prompt encoding and denoising, no decoding."""

    latents: torch.Tensor
    latency_ms: float


@dataclass(frozen=True)
class GeneratedVideos:
    """A video for every prompt, and what they took.

    Attributes:
        videos: ``[N, F, H, W, 3]`` in 0..1; of one frame where the pair makes stills.
        recordings: of each pipeline call, for cells that share steps with this one; empty where nothing may be shared.
        num_forwards: denoiser forwards that were computed, one for each video of a batch; 0 without FlowBlending, where
            nobody counts.
    """

    videos: Videos
    recordings: list[Recording]
    num_forwards: int


@dataclass
class Bench:
    """A loaded pair, and what its pipeline is called with.

    Attributes:
        load: gives the pipeline and the small denoiser, anew at every call.
        prompts: what to show; video ``i`` starts from the noise of ``seed + i``.
        call: keyword arguments of the pipeline call.
        asked: names of those that were asked for, which no adapter may set otherwise in silence.
        runs_refused: stacks that are declared incompatible are enabled all the same.
        plugins: plugin objects beside the installed ones.
        tick: told what begins, before every generation.
    """

    load: Callable[[], tuple[Pipeline, nn.Module]]
    prompts: PromptSet
    call: Keywords
    seed: int = 0
    asked: frozenset[str] = frozenset()
    runs_refused: bool = False
    plugins: tuple[object, ...] = ()
    tick: Callable[[str], None] = lambda what: None

    def __post_init__(self) -> None:
        self._known: dict[Stack, Keywords] = {}  # what stacks set, with these plugins
        self._known_with = self.plugins
        self.reload()

    def reload(self) -> None:
        """Begin again with a pair that nothing has touched."""
        self.pipe, self.small = self.load()
        refuse_unknown_arguments(self.pipe, self.asked)
        self.pipe.set_progress_bar_config(disable=True)
        self.makes_stills = False

    @property
    def guidance_scale(self) -> float | None:
        """Guidance of every call: as asked, or the pipeline's own default; ``None`` where it takes none."""
        parameter = inspect.signature(type(self.pipe).__call__).parameters.get("guidance_scale")
        return self.call.get("guidance_scale", parameter.default if parameter else None)

    @contextlib.contextmanager
    def enabled(self, spec: CellSpec | None) -> Iterator[Blend | None]:
        """The cell's schedule and stack on the pipeline; ``None`` is large-only, without FlowBlending."""
        if spec is None:
            yield None
            return
        with (
            refusals_audited() if self.runs_refused else contextlib.nullcontext(),
            enable(self.pipe, self.small, spec.schedule, adapters=spec.stack, plugins=self.plugins) as blend,
        ):
            yield blend

    def time_latents(self, spec: CellSpec | None, what: str) -> Timed:
        """One generation of the first prompt."""
        self.tick(what)
        arguments = self._arguments(spec, self.prompts.texts[:1], self.seed) | {"output_type": "latent"}
        _synchronize()
        started = time.perf_counter()
        output = self.pipe(**arguments)
        _synchronize()
        return Timed(self._shown(output), (time.perf_counter() - started) * 1e3)

    def make_one(self, spec: CellSpec | None, number: int) -> tuple[Videos, float]:
        """The video of one prompt by itself, ``[F, H, W, 3]`` in 0..1, and its time in ms up to its last latents.

        The time is that of prompt encoding and denoising; the video is decoded after it.
        """
        self.tick(f"{spec.id if spec else 'large-only'}: video {number + 1}")
        ended = 0.0

        def mark_time(pipe: object, step: int, timestep: object, tensors: Keywords) -> Keywords:
            nonlocal ended
            _synchronize()
            ended = time.perf_counter()
            return tensors

        arguments = self._arguments(spec, self.prompts.texts[number : number + 1], self.seed + number)
        _synchronize()
        started = time.perf_counter()
        output = self.pipe(**arguments, output_type="np", callback_on_step_end=mark_time)
        made = np.asarray(self._shown(output), dtype=np.float32)
        return made if self.makes_stills else made[0], (ended - started) * 1e3

    def make_videos(self, spec: CellSpec | None, what: str, numbers: range | None = None) -> Videos:
        """A video for every prompt (of these numbers), ``[N, F, H, W, 3]`` in 0..1."""
        return np.concatenate([self._make_batch(spec, batch, what) for batch in self._batches(numbers)])

    def make_shared(
        self,
        blend: Blend,
        spec: CellSpec,
        sources: Sequence[GeneratedVideos],
        what: str,
        numbers: range | None = None,
    ) -> GeneratedVideos:
        """Make them with FlowBlending on; only the steps are computed that none of ``sources`` has in common.

        Without sources, everything is computed; where the stack does not allow for sharing, that too.

        Args:
            blend: from :meth:`enabled` with this ``spec``.
            numbers: of the prompts, those that ``sources`` showed; ``None`` for all.
        """
        parts, recordings, num_forwards = [], [], 0
        for number, batch in enumerate(self._batches(numbers)):
            with ExitStack() as recording:
                recorded = None
                with contextlib.suppress(RoutingError):
                    earlier = [made.recordings[number] for made in sources if made.recordings]
                    recorded = recording.enter_context(blend.recorded(earlier))
                parts.append(self._make_batch(spec, batch, what))
            calls = blend.trace.generations[-1].calls[recorded.num_replayed if recorded else 0 :]
            num_forwards += len(parts[-1]) * sum(call.has_run for call in calls)
            if recorded is not None:
                recordings.append(recorded)
        return GeneratedVideos(np.concatenate(parts), recordings, num_forwards)

    def _batches(self, numbers: range | None) -> list[range]:
        numbers, size = numbers or range(len(self.prompts.texts)), self.prompts.batch_size
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    def _make_batch(self, spec: CellSpec | None, batch: range, what: str) -> Videos:
        self.tick(what)
        texts = self.prompts.texts[batch.start : batch.stop]
        arguments = self._arguments(spec, texts, self.seed + batch.start) | {"output_type": "np"}
        made = np.asarray(self._shown(self.pipe(**arguments)), dtype=np.float32)
        return made[:, None] if self.makes_stills else made

    def _shown(self, output: Output) -> Output:
        """Videos or stills of a pipeline's output, latents or pixels."""
        self.makes_stills = not hasattr(output, "frames")
        return output.images if self.makes_stills else output.frames

    def call_arguments(self, spec: CellSpec | None) -> Keywords:
        """The call without prompts; what an adapter sets is left to it."""
        set_by_adapters = self._set_by(spec.stack) if spec is not None and spec.stack else {}
        return {name: value for name, value in self.call.items() if name not in set_by_adapters or name in self.asked}

    def _set_by(self, stack: Stack) -> Keywords:
        if self._known_with is not self.plugins:
            self._known, self._known_with = {}, self.plugins
        if stack not in self._known:
            self._known[stack] = arguments_set_by(make_adapters(make_plugin_manager(self.plugins), stack))
        return self._known[stack]

    def _arguments(self, spec: CellSpec | None, texts: tuple[str, ...], seed: int) -> Keywords:
        generators = [torch.Generator("cpu").manual_seed(seed + number) for number in range(len(texts))]
        return {"prompt": list(texts), "generator": generators, **self.call_arguments(spec)}


class PeakMemory(NamedTuple):
    """The most memory in use since :func:`forget_peak_memory`, and of what: ``"device"`` or ``"process"``."""

    megabytes: float | None
    of: str | None


def peak_memory() -> PeakMemory:
    """Peak of the device's allocator; on a CPU of this process' resident set, where Linux tells."""
    if torch.cuda.is_available():
        return PeakMemory(torch.cuda.max_memory_allocated() / 2**20, "device")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return PeakMemory(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, "process")
    return PeakMemory(None, None)


def forget_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # not Linux, or a container that does not allow it
        Path("/proc/self/clear_refs").write_text("5")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
