"""Measuring what ``forecast(moments=...)`` needs: the large denoiser's velocities over some generations of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from flowblend_plugins import StackError
from flowblend_plugins.api import enable
from flowblend_plugins.files.measurement import config_facts
from flowblend_plugins.trace.trace import Trace
from flowblend_plugins.types import Denoiser, KeywordsView, Output, Pipeline

from ..residual import velocity_of
from .moments import BATCHED_BRANCHES, Place, VelocityMoments, guides_in_one_batch


def calibrate_forecast(pipe: Pipeline, *, calls: Sequence[KeywordsView]) -> VelocityMoments:
    """Measure the moments on generations of the large denoiser alone; the pipeline is afterwards what it was.

    A generation is kept in memory while it runs: a velocity for each of its steps and guidance branches, on the CPU.

    Args:
        pipe: a diffusers pipeline on which nothing is enabled; its denoiser is measured.
        calls: keyword arguments of each generation. Many steps are best, some three times those that will be sampled
            with: between two timesteps a line is drawn.

    Raises:
        StackError: there is no generation, they differ in their timesteps or branches, or timesteps cannot be read.
        FlowBlendError: as ``enable()``.
    """
    if not calls:
        raise StackError("calibrating the forecast takes at least one generation; calls is empty.")
    places: list[Place] = []
    total: torch.Tensor | None = None
    with enable(pipe, None, "LLL") as blend:
        denoiser: Denoiser = blend.denoisers["L"]
        for call in calls:
            with _watched(pipe, denoiser, blend.trace) as velocities:
                pipe(**call)
            own = sorted(velocities, key=lambda place: (str(place.branch), -place.timestep))
            if places not in ([], own):
                raise StackError(
                    "the generations to calibrate the forecast on differ in their timesteps or guidance branches. Give "
                    "all of them the same steps, guidance and size."
                )
            rows = torch.stack([velocities[place] for place in own]).double()
            places, gram = own, rows @ rows.T / rows.shape[1]
            total = gram if total is None else total + gram
        branches = tuple(dict.fromkeys(place.branch for place in places))
        timesteps = tuple(place.timestep for place in places if place.branch == branches[0])
        if len(timesteps) < 2 or len(branches) * len(timesteps) != len(places):
            raise StackError(
                f"a forecast is calibrated on two steps or more that call the same guidance branches; {len(places)} "
                f"calls of {len(branches)} branches were seen. Keep guidance as it is over the whole generation."
            )
        assert total is not None
        return VelocityMoments(
            class_name=type(denoiser).__name__,
            config=config_facts(denoiser),
            guidance_scale=calls[0].get("guidance_scale", getattr(pipe, "guidance_scale", None)),
            prompts=tuple(str(call["prompt"]) for call in calls if "prompt" in call),
            branches=branches,
            timesteps=timesteps,
            is_batched=getattr(pipe, "unet", None) is not None and branches == tuple(sorted(BATCHED_BRANCHES)),
            moments=(total / len(calls)).numpy(),
        )


@contextlib.contextmanager
def _watched(pipe: Pipeline, denoiser: Denoiser, trace: Trace) -> Iterator[dict[Place, torch.Tensor]]:
    """The velocity at every place, flat; filled while the pipeline runs."""
    seen: dict[Place, torch.Tensor] = {}

    def note(module: nn.Module, args: object, output: Output) -> None:
        if (step := trace.step) is None:  # not a call of the generation
            return
        if step.timestep is None:
            raise StackError("a forecast is made by timesteps, and this sampler's cannot be read. Use another solver.")
        velocity = velocity_of(output).detach().float().cpu()
        is_batched = step.branch is None and guides_in_one_batch(pipe)
        parts = zip(BATCHED_BRANCHES, velocity.chunk(2), strict=True) if is_batched else [(step.branch, velocity)]
        for branch, part in parts:
            seen[Place(branch, step.timestep)] = part.flatten().clone()

    handle = denoiser.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
