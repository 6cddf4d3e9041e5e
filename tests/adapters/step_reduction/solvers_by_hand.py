"""Every solver as a user of diffusers sets it up: schedulers built from nothing, not from a pipeline's config."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)


def _multistep(scheduler_class: Any, shift: float, **own: Any) -> Any:
    return scheduler_class(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **own)


def _finished(scheduler: Any) -> Any:
    """With flow sigmas these repeat their last sigma, and the noise of it stays in the video."""
    plain = scheduler.set_timesteps

    @functools.wraps(plain)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        plain(*args, **kwargs)
        assert scheduler.sigmas[-1] == scheduler.sigmas[-2], "diffusers has mended this: end as diffusers does"
        scheduler.sigmas[-1] = 0.001

    scheduler.set_timesteps = set_timesteps
    return scheduler


FLOW: dict[str, Callable[[float], Any]] = {
    "unipc": lambda shift: _multistep(UniPCMultistepScheduler, shift),
    "dpmpp_2m": lambda shift: _multistep(DPMSolverMultistepScheduler, shift),
    "dpmpp_3m": lambda shift: _multistep(DPMSolverMultistepScheduler, shift, solver_order=3),
    "dpmpp_single": lambda shift: _multistep(DPMSolverSinglestepScheduler, shift),
    "flow_euler": lambda shift: FlowMatchEulerDiscreteScheduler(shift=shift),
    "flow_heun": lambda shift: FlowMatchHeunDiscreteScheduler(shift=shift),
    "deis": lambda shift: _finished(_multistep(DEISMultistepScheduler, shift)),
    "sa_solver": lambda shift: _finished(_multistep(SASolverScheduler, shift)),
}
"""By shift, for flow-matching denoisers."""

_LEADING: dict[str, Any] = {"steps_offset": 1, "timestep_spacing": "leading"}

EPSILON: dict[str, Callable[[], Any]] = {
    "unipc": lambda: UniPCMultistepScheduler(**_LEADING),
    "dpmpp_2m": lambda: DPMSolverMultistepScheduler(**_LEADING),
    "dpmpp_3m": lambda: DPMSolverMultistepScheduler(**_LEADING, solver_order=3),
    "dpmpp_single": lambda: DPMSolverSinglestepScheduler(),  # which has no such arguments
    "deis": lambda: DEISMultistepScheduler(**_LEADING),
    "sa_solver": lambda: SASolverScheduler(**_LEADING),
}
"""For denoisers that predict noise, in place of Stable Diffusion XL's own scheduler."""


def drawing_from(scheduler: Any, generator: torch.Generator) -> Any:
    """Pipelines that hand their sampler no generator let SA-Solver draw from the global one; a user binds it."""
    if isinstance(scheduler, SASolverScheduler):
        scheduler.step = functools.partial(scheduler.step, generator=generator)
    return scheduler
