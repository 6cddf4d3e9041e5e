"""The schedule in steps, as it is told before a run."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from ..contract.adapter import Adapter
from ..contract.spec import write_spec
from ..errors import RoutingError
from ..schedule import StageSchedule
from ..types import KeywordsView

if TYPE_CHECKING:
    from ..blend import Blend
    from ..step import Outcome


@dataclass(frozen=True)
class Plan:
    """Plan of a generation before it runs.

    Attributes:
        schedule: as it was asked for.
        num_inference_steps: as the pipeline is called with.
        num_timesteps: length of the sampler's list; samplers that call twice a step have more than steps.
        steps: which denoiser answers when, in places of that list; ``None`` where only the sampler's sigmas will tell.
        sigmas: of that list; ``None`` where they are not known.
        outcomes: by adapter what every step will do, ``None`` where only the run will tell.
    """

    schedule: str
    num_inference_steps: int
    num_timesteps: int
    steps: str | None
    sigmas: Sequence[float] | None = None
    outcomes: dict[str, list[Outcome] | None] = field(default_factory=dict)

    def show(self, as_json: bool = False) -> None:
        """Print the plan on standard output."""
        if as_json:
            plan = {"schedule": self.schedule, "num_inference_steps": self.num_inference_steps, "steps": self.steps}
            if self.sigmas is not None:
                plan["sigmas"] = list(self.sigmas)
            typer.echo(json.dumps(plan | ({"adapters": self.outcomes} if self.outcomes else {})))
            return
        counted = ""
        if self.num_timesteps != self.num_inference_steps:
            counted = f" of {self.num_timesteps} timesteps, for the sampler calls twice a step"
        typer.echo(f"{self.schedule}: {self.steps or 'by sigma; the sampler sets its sigmas when it runs'}{counted}")
        if self.sigmas is not None:
            typer.echo(f"sigmas: {', '.join(f'{sigma:.3g}' for sigma in self.sigmas)}")
        self.show_details()

    def show_details(self) -> None:
        """Print what adapters know of each step beforehand."""
        for adapter, outcomes in self.outcomes.items():
            typer.echo(f"{adapter}: {_describe_outcomes(outcomes) if outcomes else 'known only while it runs'}")


def plan_unloaded(stages: StageSchedule, num_steps: int, adapters: Sequence[Adapter]) -> Plan:
    """Plan a generation before a pair is loaded.

    Raises:
        ScheduleError: the schedule does not fit the number of steps.
    """
    num_timesteps = num_steps
    for adapter in adapters:
        num_timesteps = adapter.count_timesteps(num_timesteps)
    steps = None if stages.needs_sigmas else stages.describe(num_timesteps)
    return Plan(stages.text, num_steps, num_timesteps, steps)


def plan_blend(blend: Blend, num_steps: int, call_arguments: KeywordsView) -> Plan:
    """Plan a generation once a pair is loaded and its adapters are attached.

    Args:
        blend: the enabled pipeline.
        num_steps: as the pipeline is called with.
        call_arguments: all that it is called with.

    Raises:
        ScheduleError: the schedule does not fit the number of steps.
    """
    stages = blend.schedule
    parameters = inspect.signature(type(blend.pipeline).__call__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    known_call = {**defaults, **call_arguments, "num_inference_steps": num_steps}
    planning = [adapter for adapter in blend.adapters if type(adapter).plan is not Adapter.plan]
    try:
        steps, outcomes = blend.preview(**known_call)
    except RoutingError:
        unloaded = plan_unloaded(stages, num_steps, blend.adapters)
        nothing: dict[str, list[Outcome] | None] = {write_spec(adapter): None for adapter in planning}
        return Plan(stages.text, num_steps, unloaded.num_timesteps, unloaded.steps, outcomes=nothing)
    sigmas = [step.sigma for step in steps if step.sigma is not None]
    known = {
        write_spec(adapter): list(plan) if plan is not None else None
        for adapter, plan in zip(blend.adapters, outcomes, strict=True)
        if adapter in planning
    }
    return Plan(
        schedule=stages.text,
        num_inference_steps=num_steps,
        num_timesteps=len(steps),
        steps=stages.describe(len(steps), sigmas),
        sigmas=sigmas or None,
        outcomes=known,
    )


def _describe_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Runs of like steps, then what they come to."""
    runs = [(outcome, len(list(group))) for outcome, group in itertools.groupby(outcomes)]
    spared = sum(outcome != "compute" for outcome in outcomes)
    listed = ", ".join(f"{outcome} {length}" for outcome, length in runs)
    return f"{listed} ({spared} of {len(outcomes)} steps are not computed)"
