"""One pair on one machine: generating with it, with FlowBlending on or off, and timing that."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flowblend_plugins import Blend, enable
from flowblend_plugins.adapter import arguments_set_by
from flowblend_plugins.manager import make_adapters, make_plugin_manager

from .cells import CellSpec
from .prompts import PromptSet

Videos = NDArray[np.float32]


class Timed(NamedTuple):
    """Latents of one generation, and its time: prompt encoding and denoising, no decoding."""

    latents: torch.Tensor
    latency_ms: float


@dataclass
class Bench:
    """A loaded pair, and what its pipeline is called with.

    Attributes:
        load: gives the pipeline and the small denoiser, anew at every call.
        prompts: what to show; video ``i`` starts from the noise of ``seed + i``.
        call: keyword arguments of the pipeline call.
        steps_are_asked: ``num_inference_steps`` was asked for, so no adapter may set another number in silence.
        guidance_is_asked: likewise ``guidance_scale``.
        plugins: plugin objects beside the installed ones.
        tick: told what begins, before every generation.
    """

    load: Callable[[], tuple[Any, nn.Module]]
    prompts: PromptSet
    call: Mapping[str, Any]
    seed: int = 0
    steps_are_asked: bool = False
    guidance_is_asked: bool = False
    plugins: tuple[Any, ...] = ()
    tick: Callable[[str], None] = lambda what: None

    def __post_init__(self) -> None:
        self.reload()

    def reload(self) -> None:
        """Begin again with a pair that nothing has touched."""
        self.pipe, self.small = self.load()
        self.pipe.set_progress_bar_config(disable=True)

    @property
    def guidance_scale(self) -> float | None:
        """Of every call: as asked, or the pipeline's own default; ``None`` where it takes none."""
        parameter = inspect.signature(type(self.pipe).__call__).parameters.get("guidance_scale")
        return self.call.get("guidance_scale", parameter.default if parameter else None)

    @contextlib.contextmanager
    def enabled(self, spec: CellSpec | None) -> Iterator[Blend | None]:
        """The cell's schedule and stack on the pipeline; ``None`` is large-only, without FlowBlending."""
        if spec is None:
            yield None
            return
        with enable(self.pipe, self.small, spec.schedule, adapters=spec.stack, plugins=self.plugins) as blend:
            yield blend

    def time_latents(self, spec: CellSpec | None, what: str) -> Timed:
        """One generation of the first prompt."""
        self.tick(what)
        arguments = self._arguments(spec, self.prompts.texts[:1], self.seed) | {"output_type": "latent"}
        _synchronize()
        started = time.perf_counter()
        latents = self.pipe(**arguments).frames
        _synchronize()
        return Timed(latents, (time.perf_counter() - started) * 1e3)

    def make_videos(self, spec: CellSpec | None, what: str) -> Videos:
        """A video for every prompt, ``[N, F, H, W, 3]`` in 0..1."""
        parts = []
        for start in range(0, len(self.prompts.texts), self.prompts.batch_size):
            self.tick(what)
            texts = self.prompts.texts[start : start + self.prompts.batch_size]
            arguments = self._arguments(spec, texts, self.seed + start) | {"output_type": "np"}
            parts.append(np.asarray(self.pipe(**arguments).frames, dtype=np.float32))
        return np.concatenate(parts)

    def call_arguments(self, spec: CellSpec | None) -> dict[str, Any]:
        """The call without prompts; what an adapter sets is left to it."""
        set_by_adapters: dict[str, Any] = {}
        if spec is not None and spec.stack:
            set_by_adapters = arguments_set_by(make_adapters(make_plugin_manager(self.plugins), spec.stack))
        asked = {"num_inference_steps": self.steps_are_asked, "guidance_scale": self.guidance_is_asked}
        return {name: value for name, value in self.call.items() if name not in set_by_adapters or asked[name]}

    def _arguments(self, spec: CellSpec | None, texts: tuple[str, ...], seed: int) -> dict[str, Any]:
        generators = [torch.Generator("cpu").manual_seed(seed + number) for number in range(len(texts))]
        return {"prompt": list(texts), "generator": generators, **self.call_arguments(spec)}


def peak_memory_mb() -> float | None:
    """Since the last :func:`forget_peak_memory`, of the device's allocator; ``None`` where there is none to ask."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


def forget_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
