"""Schedulers of our own making that differ from diffusers' in one method, by a subclass of the same name.

They are built by the solver adapters and thrown away by them; a pipeline's own scheduler is never touched. A subclass,
not an attribute on the object, so that a copy of the scheduler sets the copy's timesteps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any


def pin_sigmas(scheduler: Any, sigmas: Sequence[float]) -> None:
    """Let ``scheduler.set_timesteps`` give these noise levels, whatever a pipeline hands it.

    Args:
        scheduler: a flow-matching one whose ``set_timesteps`` takes ``sigmas``, and that shifts them by nothing.
        sigmas: falling from at most 1, without the final 0.
    """
    import numpy as np

    base: Any = type(scheduler)

    @functools.wraps(base.set_timesteps)  # pipelines read off its signature what it takes
    def set_timesteps(self: Any, num_inference_steps: Any = None, device: Any = None, **handed: Any) -> None:
        base.set_timesteps(self, device=device, sigmas=np.array(sigmas))

    # With the mark its timesteps are known before the call, whatever pipeline it is in.
    _give(scheduler, set_timesteps=set_timesteps, ignores_pipeline=True)


def finish_flow(scheduler: Any) -> None:
    """Let a flow-matching scheduler end at the noise level of the last training timestep.

    diffusers' DEIS and SASolver repeat their last sigma in place of a final one: with flow sigmas their last step has
    no length, so the noise of a whole step is left in the video (1/N of it, with N steps and no shift). Exactly 0
    divides by zero in their updates.
    """
    base: Any = type(scheduler)

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        base.set_timesteps(self, *args, **kwargs)
        self.sigmas[-1] = 1.0 / self.config.num_train_timesteps

    _give(scheduler, set_timesteps=set_timesteps)


def take_noise_from_call(scheduler: Any) -> None:
    """Let a stochastic scheduler draw from ``scheduler.call_generator`` where a pipeline hands its ``step`` none."""
    base: Any = type(scheduler)

    @functools.wraps(base.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("generator") is None:
            kwargs["generator"] = self.call_generator
        return base.step(self, *args, **kwargs)

    _give(scheduler, step=step)
    scheduler.call_generator = None


def watch_steps(scheduler: Any, see: Callable[[Any], None]) -> None:
    """Show every output that a pipeline hands to ``scheduler.step``: what its denoiser gave, after guidance."""
    base: Any = type(scheduler)

    @functools.wraps(base.step)
    def step(self: Any, model_output: Any, *args: Any, **kwargs: Any) -> Any:
        see(model_output)
        return base.step(self, model_output, *args, **kwargs)

    _give(scheduler, step=step)


def _give(scheduler: Any, **methods: Any) -> None:
    base = type(scheduler)
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    scheduler.__class__ = type(base.__name__, (base,), {**names, **methods})
