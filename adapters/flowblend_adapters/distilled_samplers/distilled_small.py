"""A distilled small denoiser between undistilled large steps ("LDL"), each with its own guidance.

The large one is guided as the call says; the small one was distilled without guidance and is answered without it.
FlowBlending (arXiv 2512.24724) calls the distilled small model D.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family, StackError, StepContext, hookimpl
from flowblend_plugins.contract.stack import is_guided
from flowblend_plugins.types import Keywords, KeywordsView, Pipeline

from ..step_reduction.attached_solver import AttachedSolver
from ..step_reduction.flow_euler import FlowEuler
from ..step_reduction.solver import Solver
from ..step_reduction.solver_history import forget_solver_history
from ..step_reduction.unipc import UniPC
from .guidance import UnguidedDenoiser, guidance_obstacle
from .own_levels import mix_levels
from .weights.distilled_weights import DistilledWeights, choose_sources, read_weights, weights_on


@dataclass(frozen=True, kw_only=True)
class DistilledSmall(Adapter):
    """Put few-step weights on the small denoiser alone.

    Put few-step weights on the small denoiser alone and turn guidance off for it alone.

    Without ``sigmas`` the sampler and its steps are the pipeline's, or those of a solver adapter beside this one.

    Args:
        small: the few-step weights: a hub id, folder or file; ``"as_loaded"`` if the small denoiser that was loaded is
            distilled already; ``None`` for those that the registered pair names.
        distilled_steps: for how many steps they were distilled: which of the pair's are meant.
        lora_scale: strength of a LoRA.
        sigmas: the noise levels to sample at, of both denoisers together, falling from at most 1, without the final 0.
            The small denoiser's steps are then of first order, as it was distilled for, whatever the sampler.
    """

    small: str | None = None
    distilled_steps: int = 8
    lora_scale: float = 1.0
    sigmas: tuple[float, ...] | None = None

    name: ClassVar[str] = "distilled_small"
    page: ClassVar[str | None] = "docs/distilled/distilled_small.md"
    suggested: ClassVar[tuple[str, ...]] = ("distilled_small", "distilled_small(distilled_steps=4)")
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.DISTILLED_SAMPLER,
        changes_only=frozenset({"S"}),
        own_guidance=True,
        wraps="weights",
        denoiser_kinds=frozenset({"transformer"}),
    )

    def __post_init__(self) -> None:
        if self.distilled_steps < 1:
            raise ValueError(f"distilled_steps={self.distilled_steps}: expected at least 1")
        if not self.lora_scale > 0.0:
            raise ValueError(f"lora_scale={self.lora_scale}: expected a number above 0")
        if self.sigmas is not None:
            UniPC(sigmas=self.sigmas)  # checks them

    def traits_with_options(self) -> AdapterTraits:
        if self.sigmas is None:
            return self.traits
        return dataclasses.replace(self.traits, changes_timesteps=True, fixes_sigmas=True, changes_only=frozenset())

    @property
    def num_inference_steps(self) -> int | None:
        """Steps of every generation, as many as ``sigmas``; ``None`` leaves them to the call."""
        return None if self.sigmas is None else len(self.sigmas)

    def _solver(self, pipe: Pipeline) -> Solver | None:
        """The sampler at ``sigmas``: of the pipeline's own class where that takes them, else Euler's."""
        if self.sigmas is None:
            return None
        own = type(pipe.scheduler).__name__
        kinds = {kind.scheduler_class().__name__: kind for kind in (UniPC, FlowEuler)}
        return kinds.get(own, FlowEuler)(sigmas=self.sigmas)

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        solver = self._solver(pipe)
        if solver is not None:
            yield from ((found, "Leave sigmas out.") for found, _ in solver.obstacles(pipe))

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[AttachedDistilledSmall]:
        if "S" not in target.denoisers:
            raise StackError(
                f"{self.name!r}: this blend has no small denoiser. Give it one, or leave {self.name!r} out."
            )
        sources = choose_sources(self.name, {"S": self.small}, self.distilled_steps, target)
        weights = read_weights(self.name, sources, target)
        solver = self._solver(target.pipeline)
        with contextlib.ExitStack() as undo:
            undo.enter_context(weights_on(weights, target, self.lora_scale))
            sampling = None
            if solver is not None:
                undo.enter_context(solver.attach(target))
                sampling = AttachedSolver(self.name, self.num_inference_steps, target.pipeline.scheduler)
            attached = AttachedDistilledSmall(self, weights, target, sampling)
            undo.callback(attached.unguided.take_off)
            yield attached


class AttachedDistilledSmall:
    """Keeps guidance off for the small denoiser in every guided call, and its steps of first order."""

    def __init__(
        self,
        adapter: DistilledSmall,
        weights: Mapping[str, DistilledWeights],
        target: AttachTarget,
        sampling: AttachedSolver | None,
    ) -> None:
        self._name = adapter.name
        self._weights = weights
        self._target = target
        self._sampling = sampling
        self.unguided = UnguidedDenoiser(target.denoisers["S"], target.trace)

    @hookimpl
    def flowblend_configure_generation(self, pipeline: Pipeline, call_arguments: Keywords) -> None:
        for of_one in self._weights.values():
            of_one.check_in_use(self._target, self._name)
        if self._sampling is not None:
            self._sampling.flowblend_configure_generation(pipeline, call_arguments)
        else:
            self._note_other_levels(call_arguments)
        if is_guided(pipeline, call_arguments):
            self._check_guidance_can_be_off(pipeline)
            self.unguided.put_on()

    @hookimpl
    def flowblend_stage_entered(self) -> None:
        self._forget()

    @hookimpl
    def flowblend_denoiser_called(self, step: StepContext) -> None:
        if step.denoiser == "S":
            self._forget()

    @hookimpl
    def flowblend_generation_finished(self) -> None:
        if self.unguided.num_spared:
            self._target.trace.note(
                f"{self._name}: guidance is off for S; {self.unguided.num_spared} times its conditional output was "
                "given for the unconditional one, which was not computed"
            )
        self.unguided.take_off()

    def _forget(self) -> None:
        """A distilled step is no sample of a smooth function, so nothing is extrapolated from it or into it."""
        scheduler = self._target.pipeline.scheduler
        if self._sampling is not None and hasattr(scheduler, "model_outputs"):
            forget_solver_history(scheduler)

    def _check_guidance_can_be_off(self, pipeline: Pipeline) -> None:
        obstacle = guidance_obstacle(pipeline)
        if obstacle is not None:
            raise StackError(
                f"{self._name!r} turns guidance off for the small denoiser alone, which takes a pipeline that calls "
                f"its denoiser for cond and then for uncond, or for both in one batch, and {type(pipeline).__name__} "
                f"{obstacle}. Call it with guidance_scale=1.0, or use 'distilled' on both denoisers."
            )
        if getattr(self._target.denoisers["S"], "_compiled_call_impl", None) is not None:
            raise StackError(
                f"{self._name!r}: the small denoiser was compiled as a whole, which would freeze whether guidance is "
                "off. Compile its blocks instead: small.compile_repeated_blocks()."
            )

    def _note_other_levels(self, call_arguments: KeywordsView) -> None:
        """Tell how to sample at the noise levels that the weights were distilled at, if they name them."""
        few = [of_one.file.sampling.get("sigmas") for of_one in self._weights.values()]
        if not few or not few[0]:
            return
        pipe = self._target.pipeline
        default = inspect.signature(type(pipe).__call__).parameters["num_inference_steps"].default
        scheduler = copy.deepcopy(pipe.scheduler)
        try:
            scheduler.set_timesteps(call_arguments.get("num_inference_steps", default))
        except (ValueError, TypeError):  # this sampler's levels depend on the size of the video
            return
        dense = [float(sigma) for sigma in scheduler.sigmas[: len(scheduler.timesteps)]]
        letters = [letter for letter, _ in self._target.schedule.assignments(len(dense), dense)]
        mixed = mix_levels(dense, letters, [float(level) for level in few[0]])
        if mixed is not None and "S" in letters and "L" in letters:
            levels = ", ".join(f"{level:.6g}" for level in mixed.sigmas)
            self._target.trace.note(
                f"{self._name}: S was distilled at other noise levels than these steps'. To sample at its own between "
                f'the large ones\': schedule "{mixed.schedule}", {self._name}(sigmas=({levels}))'
            )
