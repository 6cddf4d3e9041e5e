"""One dense run of the large denoiser alone, watched through its sampler: the velocities as they are after guidance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from flowblend_plugins import StackError
from flowblend_plugins.files.measurement import config_facts
from flowblend_plugins.types import KeywordsView, Pipeline

from ..flow_euler import FlowEuler
from ..own_scheduler import watch_steps
from .selection import select_levels
from .stored import SelectedTimesteps


def select_timesteps(
    pipe: Pipeline, *, calls: Sequence[KeywordsView], num_dense_steps: int, num_steps: Sequence[int]
) -> SelectedTimesteps:
    """Select noise levels for a pipeline from dense Euler runs; the pipeline is afterwards what it was.

    Args:
        pipe: a flow-matching diffusers pipeline on which nothing is enabled.
        calls: keyword arguments of each generation, without a number of steps.
        num_dense_steps: of each of these.
        num_steps: the numbers of steps to select for.

    Raises:
        StackError: the pipeline is no flow-matching one, cannot be sampled by Euler's method, or the runs differ in
            their noise levels.
        ValueError: a number of steps that is more than the dense ones.
    """
    if not calls:
        raise StackError("selecting timesteps takes at least one generation; calls is empty.")
    for found, _ in FlowEuler(num_inference_steps=num_dense_steps).obstacles(pipe):
        raise StackError(f"timesteps cannot be selected on {type(pipe).__name__}: {found}.")
    levels: list[float] = []
    total = np.zeros((num_dense_steps, num_dense_steps))
    for call in calls:
        with _watched(pipe) as velocities:
            pipe(**{**call, "num_inference_steps": num_dense_steps})
            sigmas = [float(sigma) for sigma in pipe.scheduler.sigmas[:-1]]
        if levels and levels != sigmas:
            raise StackError("the generations differ in their noise levels. Give all of them the same size of video.")
        if len(velocities) != num_dense_steps:
            raise StackError(
                f"{type(pipe).__name__} took {len(velocities)} steps of the {num_dense_steps} that it was asked for. "
                "Select on a call that begins at pure noise."
            )
        levels = sigmas
        total += _gram(velocities)
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    chosen = select_levels(levels, total, num_steps)
    return SelectedTimesteps(
        class_name=type(denoiser).__name__,
        config=config_facts(denoiser),
        num_dense_steps=num_dense_steps,
        num_generations=len(calls),
        guidance_scale=calls[0].get("guidance_scale"),
        selections={count: tuple(levels[index] for index in chosen[count]) for count in sorted(chosen)},
    )


@contextlib.contextmanager
def _watched(pipe: Pipeline) -> Iterator[list[torch.Tensor]]:
    """The pipeline sampled by Euler's method; the list receives the velocity of every step."""
    scheduler, config = pipe.scheduler, pipe._internal_dict
    euler = FlowEuler().build(scheduler)
    velocities: list[torch.Tensor] = []
    watch_steps(euler, lambda velocity: velocities.append(velocity.detach().float().cpu().clone()))
    try:
        pipe.register_modules(scheduler=euler)
        yield velocities
    finally:
        pipe.__dict__.update(scheduler=scheduler, _internal_dict=config)


def _gram(velocities: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """Inner products ``[N, N]``, per value of the video, so that no video counts for more by its size."""
    rows = torch.stack([velocity.flatten() for velocity in velocities]).double()
    return (rows @ rows.T / rows.shape[1]).numpy()
