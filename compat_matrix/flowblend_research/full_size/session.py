"""Session that every measurement is given: a pair on the device, its pipelines, the time of one generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

import flowblend_plugins as fb
from flowblend_plugins.schedule import StageSchedule
from flowblend_plugins.trace.flops import FlopCounter, describe_inputs
from flowblend_plugins.trace.generation import Generation
from flowblend_plugins.types import Denoiser, JsonObject, Keywords, Pipeline

from .machine import Machine
from .pairs import FullSizePair

NUM_STEPS = 6


class _Reached(Exception):
    """Raised at the first denoiser call, whose inputs are wanted and not its answer."""


@dataclass
class Session:
    """A pair on its device.

    Attributes:
        forward_s: seconds of one forward by (size, letter), as far as they were measured.
    """

    pair: FullSizePair
    machine: Machine
    large: Denoiser
    small: Denoiser
    pipe: Pipeline
    pipe_of_small: Pipeline
    forward_s: dict[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def open(cls, pair: FullSizePair, machine: Machine) -> Session:
        large, small = (pair.make_denoiser(letter, machine.device) for letter in "LS")
        return cls(pair, machine, large, small, pair.make_pipeline(large), pair.make_pipeline(small))

    def denoiser(self, letter: str) -> Denoiser:
        return self.large if letter == "L" else self.small

    def schedule(self, letters: str) -> StageSchedule:
        return StageSchedule.named(letters, self.pair.early, self.pair.late)

    def generate(self, pipe: Pipeline, size: str, num_steps: int = NUM_STEPS) -> torch.Tensor:
        """Latents of one generation with guidance off, so that a step is one forward."""
        torch.manual_seed(0)
        return pipe(
            **self.pair.text(self.machine.device),
            **self.pair.calls[size],
            num_inference_steps=num_steps,
            guidance_scale=1.0,
            generator=torch.Generator(self.machine.device).manual_seed(0),
            output_type="latent",
        ).frames

    def blended(
        self, schedule: StageSchedule, size: str, num_steps: int = NUM_STEPS, **enabling: Any
    ) -> tuple[JsonObject, Generation]:
        """Time one blended generation: seconds, peak memory, and its record."""
        with fb.enable(self.pipe, self.small, schedule, **enabling) as blend, self.machine.peak() as peak:
            latents, seconds = self.machine.timed(lambda: self.generate(self.pipe, size, num_steps))
        last = blend.trace.last
        assert last is not None
        measured: JsonObject = {
            "time_s": seconds,
            "calls": [[call.step.denoiser, call.time_ms] for call in last.calls],
            "peak_bytes": peak(),
            "is_finite": bool(latents.isfinite().all()),
        }
        return measured, last

    def inputs(self, letter: str, size: str) -> Keywords:
        """Keyword arguments with which the pipeline calls a denoiser at this size."""
        pipe, denoiser = (self.pipe, self.large) if letter == "L" else (self.pipe_of_small, self.small)
        caught: Keywords = {}

        def catch(module: object, args: object, kwargs: Keywords) -> None:
            caught.update(kwargs)
            raise _Reached

        handle = denoiser.register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.generate(pipe, size)
        except _Reached:
            return caught
        finally:
            handle.remove()
        raise AssertionError("the pipeline did not call its denoiser")

    @torch.no_grad()
    def forward_time(self, letter: str, inputs: Keywords) -> float:
        """Seconds of one forward, without pipeline and without this package."""
        denoiser = self.denoiser(letter)
        return self.machine.timed(lambda: denoiser(**inputs))[1]

    def flops(self, letter: str, inputs: Keywords) -> JsonObject:
        counted = FlopCounter.of(cast(nn.Module, self.denoiser(letter))).count(describe_inputs((), inputs))
        return {"linear": counted.linear, "full": counted.total}

    def steps_s(self, size: str, large: int, small: int = 0) -> float:
        """Expected seconds of so many forwards, from what was measured before; 0 where nothing was."""
        of = self.forward_s.get
        return large * of((size, "L"), 0.0) + small * of((size, "S"), 0.0)
