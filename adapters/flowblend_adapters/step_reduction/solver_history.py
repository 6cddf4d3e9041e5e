"""Past outputs that a multistep sampler keeps, and letting it forget them.

Multistep formulas extrapolate from the outputs of the last steps as if one smooth function had given them. Where
another denoiser enters, the function jumps: in the words of diffrax, the vector field ``made_jump``.
"""

from __future__ import annotations

from flowblend_plugins.types import Scheduler


def forget_solver_history(scheduler: Scheduler) -> None:
    """Let a diffusers multistep scheduler go on from the current sample as at its first step, at first order."""
    scheduler.model_outputs = [None] * len(scheduler.model_outputs)
    if hasattr(scheduler, "timestep_list"):
        scheduler.timestep_list = [None] * len(scheduler.timestep_list)
    if hasattr(scheduler, "lower_order_nums"):  # DPM++ single-step has an order for each step instead
        scheduler.lower_order_nums = 0
    if hasattr(scheduler, "last_sample"):  # from which a corrector would correct
        scheduler.last_sample = None
    for started in getattr(scheduler, "started_tokens", ()):  # of a sampler that keeps a history for groups of tokens
        forget_solver_history(started.solver)
