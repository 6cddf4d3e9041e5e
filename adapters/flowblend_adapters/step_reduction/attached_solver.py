"""A solver at work in a blend: what it does to each call of the pipeline, and at each switch."""

from __future__ import annotations

from flowblend_plugins import StackError, StepContext, hookimpl
from flowblend_plugins.types import Keywords, Pipeline, Scheduler

from .solver_history import forget_solver_history


class AttachedSolver:
    """Sets the number of steps of every call, unless the call says something else.

    Args:
        name: of the adapter, for errors.
        num_inference_steps: ``None`` leaves them to the call.
        scheduler: the sampler that was put into the pipeline.
    """

    def __init__(self, name: str, num_inference_steps: int | None, scheduler: Scheduler) -> None:
        self._name = name
        self._num_inference_steps = num_inference_steps
        self._scheduler = scheduler

    @hookimpl
    def flowblend_configure_generation(self, pipeline: Pipeline, call_arguments: Keywords) -> None:
        if self._num_inference_steps is None:
            return
        asked = call_arguments.get("num_inference_steps", self._num_inference_steps)
        own_list = next((name for name in ("timesteps", "sigmas") if call_arguments.get(name) is not None), None)
        if asked != self._num_inference_steps or own_list:
            given = f"{own_list}=..." if own_list else f"num_inference_steps={asked}"
            raise StackError(
                f"the call of {type(pipeline).__name__} gives {given}, and {self._name!r} was asked for "
                f"num_inference_steps={self._num_inference_steps}. Leave one of the two out."
            )
        call_arguments["num_inference_steps"] = self._num_inference_steps


class ForgettingSolver(AttachedSolver):
    """Starts a multistep sampler anew whenever another denoiser enters."""

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext) -> None:
        del step
        forget_solver_history(self._scheduler)


class StochasticSolver(AttachedSolver):
    """Draws the sampler's noise from the generator of the call, so that a seed gives the same video again."""

    @hookimpl
    def flowblend_configure_generation(self, pipeline: Pipeline, call_arguments: Keywords) -> None:
        super().flowblend_configure_generation(pipeline, call_arguments)
        self._scheduler.call_generator = call_arguments.get("generator")

    @hookimpl
    def flowblend_generation_finished(self) -> None:
        self._scheduler.call_generator = None


class ForgettingStochasticSolver(ForgettingSolver, StochasticSolver):
    """Both notes, one after the other."""
