"""From options of the command line to how each pair is loaded and called, and what is foreseen of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import FlowblendPluginManager, pairs_by_name
from flowblend_plugins.pairs.preset import PairPreset
from flowblend_plugins.schedule import DEFAULT_EARLY, DEFAULT_LATE, StageSchedule

from ..measuring.jobs import PairOrder
from ..results.expectations import Expectation, read_expectations, shipped_expectations
from .planning import num_threads_each
from .run_options import DEFAULT_PROMPTS

EMBEDDED = ("reference", "reference-unet")


class _Called(Protocol):
    """A pair that is to be run, or was."""

    @property
    def name(self) -> str: ...
    @property
    def call(self) -> Mapping[str, Any]: ...
    @property
    def early(self) -> float: ...
    @property
    def late(self) -> float: ...


def order_pair(
    preset: PairPreset | None,
    name: str,
    *,
    large: str | None,
    small: str | None,
    prompt: str | None,
    prompts: int | None,
    num_seeds: int,
    seed: int,
    call: Mapping[str, Any],
    early: float | None,
    late: float | None,
    default_prompts: int = DEFAULT_PROMPTS[0],
) -> PairOrder:
    """What a worker is told of one pair; what is not asked for is the pair's own.

    Raises:
        UsageError: it has no prompts of its own, or fewer than are asked for; or it cannot be measured here.
    """
    if preset is not None and preset.experts:
        raise UsageError(
            f"--pair {name}: its large pipeline has further experts ({', '.join(preset.experts.values())}), and the "
            "matrix holds every cell against one large denoiser. `flowblend run` blends such a pair."
        )
    return PairOrder(
        name=preset.name if preset and small is None else f"{large or name} + {small}",
        preset=preset.name if preset else None,
        large=large,
        small=small,
        prompts=None if prompt is None else (prompt,),
        num_prompts=_num_prompts(preset, prompt, prompts, default_prompts),
        num_seeds=num_seeds,
        seed=seed,
        call=(dict(preset.call_defaults) if preset else {}) | dict(call),
        steps_are_asked="num_inference_steps" in call,
        guidance_is_asked="guidance_scale" in call,
        early=early if early is not None else preset.early if preset else DEFAULT_EARLY,
        late=late if late is not None else preset.late if preset else DEFAULT_LATE,
    )


def check_steps(schedules: Iterable[StageSchedule], num_inference_steps: int | None) -> None:
    """Raise ``ScheduleError`` now rather than in every cell where runs do not add up to the steps."""
    for one in schedules:
        if num_inference_steps is not None and not one.needs_sigmas:
            one.assignments(num_inference_steps)


def num_threads(num_workers: int, orders: Iterable[PairOrder]) -> int | None:
    """The embedded pairs' products are tiny, and two threads wait for each other whenever a core is busy."""
    is_tiny = all(order.preset in EMBEDDED for order in orders)
    return num_threads_each(num_workers, os.cpu_count(), is_tiny, os.environ.get("OMP_NUM_THREADS"))


def known_outcomes(
    manager: FlowblendPluginManager, pairs: Iterable[_Called], files: Sequence[Path] | None
) -> list[Expectation]:
    """The shipped expectations of pairs that are called as they are meant to be, then those of the files.

    Raises:
        UsageError: a file cannot be read, or is wrong.
    """
    presets = pairs_by_name(manager)
    at_own_point = [
        pair.name
        for pair in pairs
        if (preset := presets.get(pair.name)) is not None
        and (dict(preset.call_defaults), preset.early, preset.late) == (dict(pair.call), pair.early, pair.late)
    ]
    own = [entry for path in files or () for entry in read_expectations(path)]
    return [*shipped_expectations(at_own_point), *own]


def _num_prompts(preset: PairPreset | None, prompt: str | None, count: int | None, default: int) -> int:
    """How many of the pair's own prompts; refused before anything is loaded where it has none or too few."""
    if prompt is not None:
        return 1
    if preset is not None and preset.name in EMBEDDED:
        return count or default
    num_own = len(preset.example_prompts) if preset is not None else 0
    if not num_own:
        raise UsageError("this pair has no prompts of its own. Say what to show with --prompt.")
    if count is not None and count > num_own:
        raise UsageError(f"--prompts {count}: this pair has {num_own} of its own.")
    return count or min(num_own, default)
