"""Schedulers of our own making that differ from diffusers' in one method, by a subclass of the same name.

They are built by the solver adapters and thrown away by them; a pipeline's own scheduler is never touched. A subclass,
not an attribute on the object, so that a copy of the scheduler sets the copy's timesteps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from flowblend_plugins.types import DiffusersClass, Output, Scheduler

from .solver_history import forget_solver_history

if TYPE_CHECKING:  # listing plugins should not pay for torch
    import torch


def pin_sigmas(scheduler: Scheduler, sigmas: Sequence[float]) -> None:
    """Let ``scheduler.set_timesteps`` give these noise levels, whatever a pipeline hands it.

    Args:
        scheduler: a flow-matching one whose ``set_timesteps`` takes ``sigmas``, and that shifts them by nothing.
        sigmas: falling from at most 1, without the final 0.
    """
    import numpy as np

    base = class_of(scheduler)

    @functools.wraps(base.set_timesteps)  # pipelines read off its signature what it takes
    def set_timesteps(
        self: Scheduler, num_inference_steps: int | None = None, device: object = None, **handed: object
    ) -> None:
        if self.pinned_sigmas is None:
            base.set_timesteps(self, num_inference_steps, device=device, **handed)
        else:
            base.set_timesteps(self, device=device, sigmas=np.array(self.pinned_sigmas))

    # With the mark its timesteps are known before the call, whatever pipeline it is in.
    give(scheduler, set_timesteps=set_timesteps, ignores_pipeline=True)
    scheduler.pinned_sigmas = tuple(sigmas)  # None for a call whose own list is to be used


def finish_flow(scheduler: Scheduler) -> None:
    """Let a flow-matching scheduler end at the noise level of the last training timestep.

    diffusers' DEIS and SASolver repeat their last sigma in place of a final one: with flow sigmas their last step has
    no length, so the noise of a whole step is left in the video (1/N of it, with N steps and no shift). Exactly 0
    divides by zero in their updates.
    """
    base = class_of(scheduler)

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Scheduler, *args: object, **kwargs: object) -> None:
        base.set_timesteps(self, *args, **kwargs)
        self.sigmas[-1] = 1.0 / self.config.num_train_timesteps

    give(scheduler, set_timesteps=set_timesteps)


def step_ends_as_euler(scheduler: Scheduler) -> None:
    """Let a flow-matching scheduler take steps from noise level 1 and to 0 as the Euler method, without history.

    DEIS works in sigma / (1 - sigma), which is infinite at the one end and has no logarithm at the other. A step of its
    first order is Euler's, whatever the levels.
    """
    base = class_of(scheduler)

    @functools.wraps(base.step)
    def step(
        self: Scheduler, model_output: torch.Tensor, timestep: object, sample: torch.Tensor, return_dict: bool = True
    ) -> Output:
        if self.step_index is None:
            self._init_step_index(timestep)
        index = cast(int, self.step_index)
        sigma, following = self.sigmas[index], self.sigmas[index + 1]
        if sigma < 1.0 and following > 0.0:
            return base.step(self, model_output, timestep, sample, return_dict=return_dict)
        forget_solver_history(self)
        self._step_index += 1
        moved = sample + (following - sigma) * model_output
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    from diffusers.schedulers.scheduling_utils import SchedulerOutput

    give(scheduler, step=step)


def take_noise_from_call(scheduler: Scheduler) -> None:
    """Let a stochastic scheduler draw from ``scheduler.call_generator`` where a pipeline hands its ``step`` none."""
    base = class_of(scheduler)

    @functools.wraps(base.step)
    def step(self: Scheduler, *args: object, **kwargs: object) -> Output:
        if kwargs.get("generator") is None:
            kwargs["generator"] = self.call_generator
        return base.step(self, *args, **kwargs)

    give(scheduler, step=step)
    scheduler.call_generator = None


def watch_steps(scheduler: Scheduler, see: Callable[[torch.Tensor], None]) -> None:
    """Show every output that a pipeline hands to ``scheduler.step``: what its denoiser gave, after guidance."""
    base = class_of(scheduler)

    @functools.wraps(base.step)
    def step(self: Scheduler, model_output: torch.Tensor, *args: object, **kwargs: object) -> Output:
        see(model_output)
        return base.step(self, model_output, *args, **kwargs)

    give(scheduler, step=step)


def class_of(scheduler: Scheduler) -> DiffusersClass:
    """Class of a scheduler, with the methods that it has at run time."""
    return cast(DiffusersClass, type(scheduler))


def give(scheduler: Scheduler, **methods: object) -> None:
    """Put methods and class attributes over those of one scheduler's class."""
    base = type(scheduler)
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    scheduler.__class__ = type(base.__name__, (base,), {**names, **methods})
