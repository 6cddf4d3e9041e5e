"""Few-step sampling: distilled LoRAs or checkpoints on the denoisers, and the sampler they were made for.

FlowBlending (arXiv 2512.24724) is reported with LTX-Video's distilled models as well, at 8 steps without guidance.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family, StackError, hookimpl
from flowblend_plugins.types import Keywords, Pipeline, Scheduler

from ..step_reduction.attached_solver import AttachedSolver
from ..step_reduction.sampler_slot import sampler_in_place
from ..step_reduction.solver import Solver
from .few_step_sampler import SAMPLERS, Sampler
from .guidance import set_guidance
from .weights.distilled_weights import DistilledWeights, choose_sources, read_weights, weights_on

MAX_STEPS_OF_NO_REUSE = 4
"""At up to this many steps a cache on top is declared inert (docs/distilled/distilled.md has what was measured)."""


@dataclass(frozen=True, kw_only=True)
class Distilled(Adapter):
    """Sample in few steps, with distilled weights.

    Sample in a few steps, with weights that were distilled for it.

    Args:
        large, small: the few-step weights of each denoiser: a hub id, folder or file, of a LoRA or of a whole
            denoiser; ``"as_loaded"`` if the one that was loaded is distilled already; ``None`` for those that the
            registered pair names.
        num_inference_steps: steps of every generation.
        sigmas: the noise levels to sample at, falling from at most 1, without the final 0; nothing shifts them.
        flow_shift: shift of evenly spaced noise levels towards noise; ``None`` keeps the pipeline's.
        sampler: ``"euler"``, ``"lcm"`` (new noise at every step) or ``"unipc"``; ``None`` for what the weights say,
            else Euler.
        guidance_scale: of every call; 1 is guidance off.
        lora_scale: strength of LoRAs.
    """

    large: str | None = None
    small: str | None = None
    num_inference_steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    flow_shift: float | None = None
    sampler: Sampler | None = None
    guidance_scale: float = 1.0
    lora_scale: float = 1.0

    second_pass_sigmas: ClassVar[tuple[float, ...]] = ()
    """Noise levels of a second pass (a call with ``denoise_strength`` below 1), where it has levels of its own."""

    name: ClassVar[str] = "distilled"
    page: ClassVar[str | None] = "docs/distilled/distilled.md"
    suggested: ClassVar[tuple[str, ...]] = ("distilled(num_inference_steps=8)", "distilled(num_inference_steps=4)")
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.DISTILLED_SAMPLER,
        changes_timesteps=True,
        fixes_sigmas=True,
        needs_guidance_off=True,
        wraps="weights",
        denoiser_kinds=frozenset({"transformer"}),
    )

    def __post_init__(self) -> None:
        if self.num_inference_steps is None and self.sigmas is None:
            raise ValueError("num_inference_steps is missing: say for how many steps the weights were distilled")
        if not self.guidance_scale > 0.0 or not self.lora_scale > 0.0:
            wrong = "guidance_scale" if not self.guidance_scale > 0.0 else "lora_scale"
            raise ValueError(f"{wrong}={getattr(self, wrong)}: expected a number above 0")
        solver = self._solver(self.sampler or "euler", self.sigmas, self.flow_shift)  # checks these options
        num_steps = solver.num_inference_steps
        assert num_steps is not None
        object.__setattr__(self, "num_inference_steps", num_steps)

    def traits_with_options(self) -> AdapterTraits:
        assert self.num_inference_steps is not None
        return dataclasses.replace(
            self.traits,
            needs_guidance_off=self.guidance_scale <= 1.0,
            takes_few_steps=self.num_inference_steps <= MAX_STEPS_OF_NO_REUSE,
        )

    def _solver(self, sampler: str, sigmas: tuple[float, ...] | None, flow_shift: float | None) -> Solver:
        return SAMPLERS[sampler](num_inference_steps=self.num_inference_steps, sigmas=sigmas, flow_shift=flow_shift)

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        takes = [name for name, sampler in SAMPLERS.items() if not list(sampler._sampler_obstacles(pipe))]
        for found, _ in self._solver(self.sampler or "euler", self.sigmas, self.flow_shift).obstacles(pipe):
            options = " or ".join(f'sampler="{name}"' for name in takes)
            yield found, f"{type(pipe).__name__} takes {options}." if options else "Leave it out."

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[AttachedDistilled]:
        self._refuse_further_denoisers(target)
        sources = choose_sources(self.name, self._given(target), self.num_inference_steps, target)
        weights = read_weights(self.name, sources, target)
        solver = self._solver_for(weights)
        pipe = target.pipeline
        with weights_on(weights, target, self.lora_scale), sampler_in_place(pipe, solver.build_for(pipe)):
            yield AttachedDistilled(self, weights, target, pipe.scheduler)

    def _given(self, target: AttachTarget) -> dict[str, str | None]:
        """Weights by letter, but for those that nobody asked for on a denoiser that the schedule never calls."""
        called, kind = target.schedule.letters, type(self)
        sides = {"L": (self.large, kind.large), "S": (self.small, kind.small)}
        return {letter: source for letter, (source, own) in sides.items() if letter in called or source != own}

    def _refuse_further_denoisers(self, target: AttachTarget) -> None:
        further = sorted(target.schedule.letters - {"L", "S"})
        if further:
            raise StackError(
                f"{self.name!r} has few-step weights for L and S, and the schedule calls {', '.join(further)} too, "
                "which would be sampled in steps that it was not made for. Use a schedule of L and S."
            )

    def _solver_for(self, weights: Mapping[str, DistilledWeights]) -> Solver:
        """The sampler: what the options say, else what the weights say that they were made for."""
        stated = [(of_one.file.source, of_one.file.sampling) for of_one in weights.values() if of_one.file.sampling]
        for source, sampling in stated:
            if sampling.get("num_inference_steps", self.num_inference_steps) != self.num_inference_steps:
                raise StackError(
                    f"{source!r} was distilled for {sampling['num_inference_steps']} steps, and {self.name!r} was "
                    f"asked for {self.num_inference_steps}. Ask for {sampling['num_inference_steps']}."
                )
        keys = ("sigmas", "sampler")
        first: Keywords = {key: stated[0][1].get(key) if stated else None for key in keys}
        for source, sampling in stated[1:]:
            for key in keys:
                if sampling.get(key) != first[key]:
                    raise StackError(
                        f"{stated[0][0]!r} was made for {key}={first[key]} and {source!r} for "
                        f"{key}={sampling.get(key)}, and both denoisers share one sampler. Use two that were distilled "
                        "alike."
                    )
        sampler = self.sampler or first["sampler"] or "euler"
        own_levels = self.sigmas is not None or self.flow_shift is not None
        try:
            sigmas = self.sigmas if own_levels or not first["sigmas"] else tuple(map(float, first["sigmas"]))
            return self._solver(sampler, sigmas, self.flow_shift)
        except (KeyError, ValueError, TypeError) as error:
            raise StackError(
                f"what {stated[0][0]!r} says of how it is sampled cannot be used: {error}. Give sigmas=... and "
                "sampler=..."
            ) from error


class AttachedDistilled(AttachedSolver):
    """Few-step sampling at work: its number of steps and its guidance in every call."""

    def __init__(
        self, adapter: Distilled, weights: Mapping[str, DistilledWeights], target: AttachTarget, scheduler: Scheduler
    ) -> None:
        super().__init__(adapter.name, adapter.num_inference_steps, scheduler)
        self._adapter = adapter
        self._weights = weights
        self._target = target
        self._levels: tuple[float, ...] = getattr(scheduler, "pinned_sigmas", ())

    @hookimpl
    def flowblend_configure_generation(self, pipeline: Pipeline, call_arguments: Keywords) -> None:
        own_list = self._choose_levels(call_arguments) if self._adapter.second_pass_sigmas and self._levels else {}
        super().flowblend_configure_generation(pipeline, call_arguments)
        call_arguments |= own_list
        set_guidance(self._adapter.name, pipeline, call_arguments, self._adapter.guidance_scale)
        for of_one in self._weights.values():
            of_one.check_in_use(self._target, self._adapter.name)
        if hasattr(self._scheduler, "call_generator"):
            self._scheduler.call_generator = call_arguments.get("generator")

    def _choose_levels(self, call_arguments: Keywords) -> Keywords:
        """Sample at the levels of the first or the second pass; timesteps of the call that say the same are kept.

        Returns:
            The call's own timesteps, which are taken out of it.

        Raises:
            StackError: the call's timesteps are those of neither pass.
        """
        second = self._adapter.second_pass_sigmas
        started = (1.0, *second)  # of which denoise_strength leaves out the first
        timesteps = call_arguments.pop("timesteps", None)
        self._scheduler.pinned_sigmas = None
        if timesteps is None:
            is_second = call_arguments.get("denoise_strength", 1.0) < 1.0
            self._scheduler.pinned_sigmas = started if is_second else self._levels
            return {}
        given = [float(timestep) / 1000.0 for timestep in timesteps]
        if not any(_are_same_levels(given, own) for own in (self._levels, second, started)):
            listed = " or ".join(str([round(1000 * level, 2) for level in own]) for own in (self._levels, started))
            raise StackError(
                f"the call gives timesteps={list(map(float, timesteps))}, and {self._adapter.name!r} was distilled for "
                f"{listed} (the second pass). Leave timesteps out of the call, or leave out {self._adapter.name!r}."
            )
        return {"timesteps": timesteps}

    @hookimpl
    def flowblend_generation_finished(self) -> None:
        if self._levels:
            self._scheduler.pinned_sigmas = self._levels
        if hasattr(self._scheduler, "call_generator"):
            self._scheduler.call_generator = None


def _are_same_levels(given: Sequence[float], own: Sequence[float]) -> bool:
    """Whether two lists of noise levels agree to three digits, but for a last one that is all but 0."""
    few, many = ([level for level in levels if level > 1e-3] for levels in (given, own))
    return len(few) == len(many) and all(abs(a - b) < 1e-3 for a, b in zip(few, many, strict=True))
