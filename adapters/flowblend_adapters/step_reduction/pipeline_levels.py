"""Multistep samplers at the noise levels that a pipeline sets for its own sampler, as LTX-Video's pipelines do.

LTX hands its sampler ``sigmas`` and ``mu`` (a shift from the size of the video), LTX Condition a list of ``timesteps``,
and there every token has its own: a token of a condition with strength s is denoised from noise level 1 - s on. Most
samplers of diffusers take none of this. Here the pipeline's own sampler goes on setting the levels, and the multistep
sampler steps between them. At first order the result is that of the flow-matching Euler method.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, NamedTuple

from flowblend_plugins import StackError
from flowblend_plugins.types import DiffusersClass, Output, Scheduler

from .own_scheduler import class_of, give
from .solver_history import forget_solver_history

if TYPE_CHECKING:  # listing plugins should not pay for torch
    import torch

_SAME = 1e-6  # noise levels closer than this are one, as in FlowMatchEulerDiscreteScheduler.step


class StartedTokens(NamedTuple):
    """Tokens that a pipeline began to denoise at one step, and the sampler with their history alone.

    ``mask`` is of shape ``(batch, tokens)``.
    """

    mask: torch.Tensor
    solver: Scheduler


def sample_at_levels_of(scheduler: Scheduler, levels: Scheduler, highest: float = 1.0) -> None:
    """Let a multistep scheduler step between the noise levels that another one sets.

    Args:
        scheduler: a multistep one for flow matching; ``set_timesteps`` and ``step`` then take what LTX hands them.
        levels: a copy of the pipeline's own flow-matching sampler; it sets levels and never steps.
        highest: a first level above this one is lowered to it, for formulas that divide by ``1 - sigma``.
    """
    base = class_of(scheduler)

    def set_timesteps(
        self: Scheduler,
        num_inference_steps: int | None = None,
        device: object = None,
        sigmas: object = None,
        mu: object = None,
        timesteps: object = None,
    ) -> None:
        given = {"sigmas": sigmas, "mu": mu, "timesteps": timesteps}
        own = self.own_levels
        own.set_timesteps(num_inference_steps, device=device, **{k: v for k, v in given.items() if v is not None})
        if float(own.sigmas[:-1].min()) <= 0.0:
            raise StackError(
                f"the timesteps of this call end at 0, from where {base.__name__} has no step to take. Leave the 0 "
                "out of timesteps=."
            )
        self.sigmas, self.timesteps = own.sigmas.to("cpu").clone(), own.timesteps
        self.sigmas[0] = self.sigmas[0].clamp(max=highest)
        self.num_inference_steps = len(self.timesteps)
        self.started_tokens = []
        forget_solver_history(self)
        self._step_index = self._begin_index = None

    @functools.wraps(base.step)
    def step(
        self: Scheduler,
        model_output: torch.Tensor,
        timestep: object,
        sample: torch.Tensor,
        *,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
        **further: object,
    ) -> Output:
        if per_token_timesteps is None:
            return base.step(self, model_output, timestep, sample, return_dict=return_dict, **further)
        if self.step_index is None:
            self._init_step_index(timestep)
        # With a timestep for every token, FlowMatchEulerDiscreteScheduler too takes the velocity with its sign changed.
        moved = _step_tokens(base, self, -model_output, timestep, sample, per_token_timesteps)
        self._step_index += 1
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    from diffusers.schedulers.scheduling_utils import SchedulerOutput

    give(scheduler, set_timesteps=set_timesteps, step=step)
    scheduler.own_levels = levels
    scheduler.started_tokens = []


def _step_tokens(
    base: DiffusersClass,
    scheduler: Scheduler,
    velocity: torch.Tensor,
    timestep: object,
    sample: torch.Tensor,
    per_token_timesteps: torch.Tensor,
) -> torch.Tensor:
    """One step in which every token has the history of the steps since it was first denoised.

    Tokens that are still at their condition's own noise level do not move: the pipeline keeps what they were.
    """
    import torch

    index = scheduler.step_index
    level = scheduler.own_levels.sigmas[index].to(sample.device)
    starts = (per_token_timesteps / scheduler.config.num_train_timesteps > level - _SAME).expand(sample.shape[:2])
    for started in scheduler.started_tokens:
        starts = starts & ~started.mask
    if starts.any():
        solver = copy.copy(scheduler)
        solver.started_tokens = []
        forget_solver_history(solver)
        scheduler.started_tokens.append(StartedTokens(starts, solver))
    result = sample.to(torch.float32)
    for mask, solver in scheduler.started_tokens:
        solver._step_index = index
        stepped = base.step(solver, velocity, timestep, sample, return_dict=False)[0]
        result = torch.where(mask[..., None], stepped, result)
    return result
