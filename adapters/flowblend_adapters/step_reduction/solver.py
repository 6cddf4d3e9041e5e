"""What every solver adapter does: another sampler in the pipeline, and optionally another number of steps.

Stage boundaries are fractions or sigmas, so they move along with the number of steps.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, StackError, hookimpl
from flowblend_plugins.traits import Family

# What a scheduler config says of the noise schedule that the denoiser is sampled on, with the value that says nothing.
# A sampler that takes no such argument would ignore it in silence.
_NEUTRAL_NOISE_SCHEDULE = {
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
    "timestep_type": "discrete",
}


@dataclass(frozen=True, kw_only=True)
class Solver(Adapter):
    """A sampler in place of the pipeline's own, built from the config of the pipeline's own.

    Args:
        num_inference_steps: steps of every generation; ``None`` leaves them to the call.
        flow_shift: shift of the flow-matching sigmas towards noise; ``None`` keeps the pipeline's.
    """

    num_inference_steps: int | None = None
    flow_shift: float | None = None

    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.STEP_REDUCTION, changes_timesteps=True)

    def __post_init__(self) -> None:
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={self.num_inference_steps}: expected at least 1")
        if self.flow_shift is not None and not 0.0 < self.flow_shift < float("inf"):
            raise ValueError(f"flow_shift={self.flow_shift}: expected a number above 0")

    @classmethod
    def scheduler_class(cls) -> type:
        """The diffusers scheduler that is this solver."""
        raise NotImplementedError

    def settings(self, is_flow: bool, flow_shift: float) -> dict[str, Any]:
        """What the new scheduler's config has beyond the old one's.

        Args:
            is_flow: whether the denoiser predicts a flow-matching velocity.
            flow_shift: the shift to use if it does.
        """
        raise NotImplementedError

    def build(self, scheduler: Any) -> Any:
        """The scheduler that takes the place of ``scheduler``."""
        shift = self.flow_shift if self.flow_shift is not None else _flow_shift(scheduler)
        new_class, old = self.scheduler_class(), scheduler.config
        takes = inspect.signature(new_class.__init__).parameters  # type: ignore[misc]
        taken = {key: value for key, value in old.items() if key in takes or key.startswith("_")}
        new = new_class.from_config(taken, **self.settings(_is_flow(scheduler), shift))  # type: ignore[attr-defined]
        # Pipelines read some of what a sampler itself does not take off its config, as LTX does `base_shift`.
        new.register_to_config(**{key: value for key, value in old.items() if key not in taken})
        return new

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[_StepCount]:
        pipe = target.pipeline
        # register_modules also writes the new class into the pipeline's config, which is what save_pretrained saves.
        scheduler, config = pipe.scheduler, pipe._internal_dict
        try:
            pipe.register_modules(scheduler=self.build(scheduler))
            yield _StepCount(self.name, self.num_inference_steps)
        finally:
            pipe.__dict__.update(scheduler=scheduler, _internal_dict=config)

    def obstacles(self, pipe: Any) -> Iterable[tuple[str, str]]:
        known = sorted(Solver.__subclasses__(), key=lambda solver: solver.name)  # not by the order of imports
        solvers = ", ".join(repr(solver.name) for solver in known if not list(solver._sampler_obstacles(pipe)))
        remedy = f"Solvers that {type(pipe).__name__} takes: {solvers}." if solvers else f"Leave out {self.name!r}."
        for found in self._sampler_obstacles(pipe):
            yield found, remedy
        if self.num_inference_steps is not None and "num_inference_steps" not in _call_parameters(pipe):
            yield f"{type(pipe).__name__} takes no num_inference_steps", "Leave the option out."
        if self.flow_shift is not None:
            config = pipe.scheduler.config
            if not _is_flow(pipe.scheduler):
                yield f"flow_shift={self.flow_shift:g}, but this denoiser is no flow-matching one", "Leave it out."
            elif config.get("use_dynamic_shifting"):
                yield (
                    f"flow_shift={self.flow_shift:g} would have no effect, because the shift of this pipeline follows "
                    "from the size of the video (use_dynamic_shifting)",
                    "Leave it out.",
                )

    @classmethod
    def _sampler_obstacles(cls, pipe: Any) -> Iterator[str]:
        new, config = cls.scheduler_class(), pipe.scheduler.config
        takes = inspect.signature(new.set_timesteps).parameters  # type: ignore[attr-defined]
        refused = [name for name in timestep_arguments(pipe) if name not in takes]
        if refused:
            yield f"{type(pipe).__name__} hands its sampler {' and '.join(refused)}, which {new.__name__} does not take"
        has = inspect.signature(new.__init__).parameters  # type: ignore[misc]
        unknown = {field: neutral for field, neutral in _NEUTRAL_NOISE_SCHEDULE.items() if field not in has}
        lost = [f"{f}={config[f]!r}" for f, neutral in unknown.items() if config.get(f, neutral) != neutral]
        if lost:
            yield f"{type(pipe).__name__} samples with {', '.join(lost)}, which {new.__name__} does not have"
        if "prediction_type" not in has and not _is_flow(pipe.scheduler):
            old = type(pipe.scheduler).__name__
            yield f"{new.__name__} is for flow-matching denoisers, and this one is sampled by {old}"


class _StepCount:
    """Sets the number of steps of every call, unless the call says something else."""

    def __init__(self, name: str, num_inference_steps: int | None) -> None:
        self._name = name
        self._num_inference_steps = num_inference_steps

    @hookimpl
    def flowblend_configure_generation(self, pipeline: Any, call_arguments: dict[str, Any]) -> None:
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


def _is_flow(scheduler: Any) -> bool:
    """Flow-matching samplers either say so, or know no variance schedule (betas) at all."""
    return bool(scheduler.config.get("use_flow_sigmas")) or "beta_start" not in scheduler.config


def _flow_shift(scheduler: Any) -> float:
    """The shift under the name that this scheduler has for it."""
    if "flow_shift" in inspect.signature(type(scheduler).__init__).parameters:
        return scheduler.config.flow_shift
    return getattr(scheduler, "shift", 1.0)


def _call_parameters(pipe: Any) -> Any:
    return inspect.signature(type(pipe).__call__).parameters


def timestep_arguments(pipe: Any) -> tuple[str, ...]:
    """Those of ``sigmas`` and ``mu`` that a pipeline always hands to ``scheduler.set_timesteps``.

    Read off the source of its ``__call__``: ``mu`` if it is passed on at all; ``sigmas`` if the pipeline makes a
    list of its own, for one that stays ``None`` is not handed on.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(type(pipe).__call__))))
    except (OSError, TypeError):  # no source on this machine: nothing is known, so nothing is refused
        return ()
    passed: set[str] = set()
    assigned: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("set_timesteps", "retrieve_timesteps"):
                passed |= {keyword.arg for keyword in node.keywords if keyword.arg}
                passed |= {argument.id for argument in node.args if isinstance(argument, ast.Name)}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assigned.add(node.id)
    return tuple(name for name in ("sigmas", "mu") if name in passed and (name == "mu" or name in assigned))
