"""Solver adapters: another sampler in the pipeline, and optionally another number or choice of steps.

Stage boundaries are fractions or sigmas, so they move along with the steps.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family
from flowblend_plugins.pipelines.source import read_source
from flowblend_plugins.types import DiffusersClass, Keywords, Pipeline, Scheduler

from .attached_solver import AttachedSolver
from .noise_schedule import flow_shift_of, inherited_config, is_flow, lost_noise_schedule
from .own_scheduler import pin_sigmas
from .pipeline_levels import sample_at_levels_of
from .sampler_slot import sampler_in_place
from .selected_timesteps.stored import SelectedTimesteps

# With explicit sigmas nothing may move them any more.
_NO_SHIFT = {
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


@dataclass(frozen=True, kw_only=True)
class Solver(Adapter):
    """A sampler in place of the pipeline's own, built from the config of the pipeline's own.

    Args:
        num_inference_steps: steps of every generation; ``None`` leaves them to the call.
        flow_shift: shift of the flow-matching sigmas towards noise; ``None`` keeps the pipeline's.
        sigmas: the noise levels to sample at, falling from at most 1, without the final 0; nothing shifts them.
        timesteps: noise levels selected for this pair instead: a file that ``flowblend calibrate timesteps`` wrote, or
            ``"reference"`` for the embedded pair. Needs ``num_inference_steps``.
    """

    num_inference_steps: int | None = None
    flow_shift: float | None = None
    sigmas: tuple[float, ...] | None = None
    timesteps: str | None = None

    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.STEP_REDUCTION, changes_timesteps=True)

    scheduler_name: ClassVar[str]
    """Name of the scheduler in diffusers that is this solver."""

    highest_level: ClassVar[float | None] = None
    """Of a solver that can step between noise levels that a pipeline sets (as LTX does): the highest to begin at."""

    def __post_init__(self) -> None:
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={self.num_inference_steps}: expected at least 1")
        if self.flow_shift is not None and not 0.0 < self.flow_shift < float("inf"):
            raise ValueError(f"flow_shift={self.flow_shift}: expected a number above 0")
        if self.sigmas is not None and self.timesteps is not None:
            raise ValueError("sigmas and timesteps both say at which noise levels to sample; leave one out")
        if (self.sigmas or self.timesteps) and self.flow_shift is not None:
            given = "sigmas" if self.sigmas else "timesteps"
            raise ValueError(f"flow_shift={self.flow_shift:g} would not move the noise levels that {given} gives")
        if self.sigmas is not None:
            self._check_sigmas(self.sigmas)
        if self.timesteps is not None:
            if self.num_inference_steps is None:
                raise ValueError(f"timesteps={self.timesteps!r} needs num_inference_steps")
            SelectedTimesteps.read(self.timesteps).sigmas(self.num_inference_steps)

    def _check_sigmas(self, sigmas: tuple[float, ...]) -> None:
        falling = all(a > b for a, b in itertools.pairwise(sigmas))
        if not sigmas or not falling or not sigmas[0] <= 1.0 or not sigmas[-1] > 0.0:
            raise ValueError(f"sigmas={sigmas}: expected numbers that fall, from at most 1 to above 0")
        if self.num_inference_steps not in (None, len(sigmas)):
            raise ValueError(
                f"num_inference_steps={self.num_inference_steps}, but sigmas has {len(sigmas)} noise levels"
            )
        # Whoever asks how many steps this adapter sets (the command line, the matrix) reads it here.
        object.__setattr__(self, "num_inference_steps", len(sigmas))

    @classmethod
    def scheduler_class(cls) -> DiffusersClass:
        """The diffusers scheduler that is this solver."""
        import diffusers

        return getattr(diffusers, cls.scheduler_name)

    def settings(self, is_flow: bool, flow_shift: float) -> Keywords:
        """Settings of the new scheduler's config beyond the old one's.

        Args:
            is_flow: whether the denoiser predicts a flow-matching velocity.
            flow_shift: the shift to use if it does.
        """
        raise NotImplementedError

    def build(self, scheduler: Scheduler) -> Scheduler:
        """The scheduler that takes the place of ``scheduler``."""
        sigmas = self.chosen_sigmas
        own_shift = flow_shift_of(scheduler) if self.flow_shift is None else self.flow_shift
        new_class = self.scheduler_class()
        takes = inspect.signature(new_class.__init__).parameters
        settings = self.settings(is_flow(scheduler), own_shift if sigmas is None else 1.0)
        if sigmas is not None:
            settings |= {key: value for key, value in _NO_SHIFT.items() if key in takes}
        new = new_class.from_config(inherited_config(scheduler, new_class), **settings)
        # Pipelines read some of what a sampler itself does not take off its config, as LTX does `base_shift`.
        new.register_to_config(**{k: v for k, v in scheduler.config.items() if k not in takes and k[0] != "_"})
        if sigmas is not None:
            pin_sigmas(new, sigmas)
        return new

    def build_for(self, pipe: Pipeline) -> Scheduler:
        """The scheduler that takes the place of the pipeline's own, at the noise levels that the pipeline sets."""
        new = self.build(pipe.scheduler)
        if self._steps_between_levels(pipe):
            levels = copy.deepcopy(pipe.scheduler)
            if self.chosen_sigmas is not None:
                levels = type(levels).from_config(levels.config, shift=1.0, **_NO_SHIFT)
                pin_sigmas(levels, self.chosen_sigmas)
            elif self.flow_shift is not None:
                levels.set_shift(self.flow_shift)
            self.step_between(new, levels)
        return new

    def step_between(self, new: Scheduler, levels: Scheduler) -> None:
        """Let the new scheduler step between the noise levels that ``levels`` sets."""
        assert self.highest_level is not None
        sample_at_levels_of(new, levels, self.highest_level)

    @property
    def chosen_sigmas(self) -> tuple[float, ...] | None:
        """The noise levels that were asked for; ``None`` where the sampler spaces them itself."""
        if self.timesteps is None:
            return self.sigmas
        assert self.num_inference_steps is not None
        return SelectedTimesteps.read(self.timesteps).sigmas(self.num_inference_steps)

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[AttachedSolver]:
        pipe = target.pipeline
        with sampler_in_place(pipe, self.build_for(pipe)):
            yield self.attached(pipe.scheduler)

    def attached(self, scheduler: Scheduler) -> AttachedSolver:
        """Plugin that takes part in the blend while this solver is on."""
        return AttachedSolver(self.name, self.num_inference_steps, scheduler)

    def obstacles(self, pipe: Pipeline, registered: Iterable[type[Adapter]] = ()) -> Iterable[tuple[str, str]]:
        solvers = [one for one in solvers_among(registered) if not list(one._sampler_obstacles(pipe))]
        remedy = f"Solvers that {type(pipe).__name__} takes: {_named(solvers)}." if solvers else "Leave it out."
        for found in self._sampler_obstacles(pipe):
            yield found, remedy
        if self.num_inference_steps is not None and "num_inference_steps" not in _call_parameters(pipe):
            yield f"{type(pipe).__name__} takes no num_inference_steps", "Leave the option out."
        if self.flow_shift is not None:
            yield from self._shift_obstacles(pipe, self.flow_shift)
        if self.sigmas is not None or self.timesteps is not None:
            yield from self._sigma_obstacles(pipe, [solver for solver in solvers if solver._takes_sigmas()])

    @classmethod
    def _steps_between_levels(cls, pipe: Pipeline) -> bool:
        """Whether the pipeline hands its sampler what this class does not take, and this solver can do without."""
        takes = inspect.signature(cls.scheduler_class().set_timesteps).parameters
        handed = read_source(pipe).timestep_arguments
        # diffusers' multistep schedulers that take timesteps round them to integers.
        left = [argument for argument in handed if argument not in takes or argument == "timesteps"]
        return cls.highest_level is not None and bool(left)

    @classmethod
    def _sampler_obstacles(cls, pipe: Pipeline) -> Iterator[str]:
        new, old, name, source = cls.scheduler_class(), pipe.scheduler, type(pipe).__name__, read_source(pipe)
        follows = cls._steps_between_levels(pipe)
        takes = inspect.signature((old if follows else new).set_timesteps).parameters
        refused = [argument for argument in source.timestep_arguments if argument not in takes]
        if refused:
            taker = type(old).__name__ if follows else new.__name__
            yield f"{name} hands its sampler {' and '.join(refused)}, which {taker} does not take"
        moving = _moved_by(old) if follows and "timesteps" in source.timestep_arguments else ""
        if moving:
            yield f"{name} gives a list of timesteps, and its own sampler's {moving} moves the sigmas away from them"
        steps = inspect.signature(new.step).parameters
        unknown = sorted(source.step_keywords - steps.keys() - ({"per_token_timesteps"} if follows else set()))
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in steps.values()):
            yield f"{name} hands every step {' and '.join(unknown)}, which {new.__name__} does not take"
        if source.leaves_out_last_timestep:
            yield f"{name} leaves out the last of its sampler's timesteps, which of {new.__name__} is a whole step"
        lost = lost_noise_schedule(old, new)
        if follows:  # all but this is in the levels that the pipeline's own sampler goes on setting
            lost = [field for field in lost if field.startswith("invert_sigmas")]
        if lost:
            yield f"{name} samples with {', '.join(lost)}, which {new.__name__} does not have"
        if (follows or "prediction_type" not in inspect.signature(new.__init__).parameters) and not is_flow(old):
            yield f"{new.__name__} is for flow-matching denoisers, and this one is sampled by {type(old).__name__}"

    def _shift_obstacles(self, pipe: Pipeline, flow_shift: float) -> Iterator[tuple[str, str]]:
        scheduler = pipe.scheduler
        if not is_flow(scheduler):
            yield f"flow_shift={flow_shift:g}, but this denoiser is no flow-matching one", "Leave it out."
        elif scheduler.config.get("use_dynamic_shifting"):
            yield (
                f"flow_shift={flow_shift:g} would have no effect, because the shift of this pipeline follows "
                "from the size of the video (use_dynamic_shifting)",
                "Leave it out.",
            )
        elif "timesteps" in read_source(pipe).timestep_arguments:
            found = (
                f"flow_shift={flow_shift:g} would move sigmas away from the timesteps that {type(pipe).__name__} gives"
            )
            yield found, "Leave it out."
        elif self._steps_between_levels(pipe) and not hasattr(scheduler, "set_shift"):
            yield (
                f"flow_shift={flow_shift:g} would not reach {type(scheduler).__name__}, which sets the sigmas",
                "Leave it out.",
            )

    def _sigma_obstacles(self, pipe: Pipeline, solvers: list[type[Solver]]) -> Iterator[tuple[str, str]]:
        option = "sigmas" if self.sigmas is not None else "timesteps"
        if not is_flow(pipe.scheduler):
            yield (
                f"{option} are noise levels of flow matching, and this denoiser is no flow-matching one",
                "Leave them out.",
            )
        elif not self._takes_sigmas():
            found = f"{option} were given, and {self.scheduler_class().__name__} takes no list of noise levels"
            yield (
                found,
                f"Solvers that take one on {type(pipe).__name__}: {_named(solvers)}." if solvers else "Leave it out.",
            )
        if self.timesteps is not None:
            denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
            differences = SelectedTimesteps.read(self.timesteps).differences(denoiser)
            if differences:
                told = "; ".join(differences[:4])
                yield (
                    f"the timesteps in {self.timesteps!r} were selected on another denoiser ({told})",
                    "Run `flowblend calibrate timesteps` on this pair.",
                )

    @classmethod
    def _takes_sigmas(cls) -> bool:
        return "sigmas" in inspect.signature(cls.scheduler_class().set_timesteps).parameters


def solvers_among(adapters: Iterable[type[Adapter]]) -> list[type[Solver]]:
    """Adapter classes that are solvers, by name."""
    return sorted((one for one in adapters if issubclass(one, Solver)), key=lambda solver: solver.name)


def _moved_by(scheduler: Scheduler) -> str:
    """Settings that move a scheduler's sigmas away from the given timesteps, as ``"name=value"``; empty if nothing."""
    config, shift = scheduler.config, flow_shift_of(scheduler)
    moving = [f"shift={shift:g}"] if shift != 1.0 else []
    return ", ".join(moving + [f"{name}={config[name]}" for name in _NO_SHIFT if config.get(name)])


def _named(solvers: list[type[Solver]]) -> str:
    return ", ".join(repr(solver.name) for solver in solvers)


def _call_parameters(pipe: Pipeline) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters
