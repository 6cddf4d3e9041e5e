"""Plan of TeaCache's steps on Wan, known before the run because both signals follow from the timestep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from flowblend_plugins import Outcome, StepContext

from .rule import Accumulator, SkipRule
from .signals import relative_change, time_signal


@torch.no_grad()
def plan_steps(
    denoisers: Mapping[str, nn.Module],
    rules: Mapping[str, tuple[str, SkipRule]],
    steps: Sequence[StepContext],
    reentry: str,
) -> list[Outcome]:
    """The outcome of every step, the same for each guidance branch.

    Args:
        denoisers: by letter.
        rules: signal and rule of each denoiser that is cached.
        steps: of one generation, in order, with their timesteps.
        reentry: ``"recompute"`` or ``"keep"``.
    """
    outcomes: list[Outcome] = []
    signals: dict[str, torch.Tensor] = {}
    accumulators: dict[str, Accumulator] = {}
    entered, last_letter = 0, ""
    for step in steps:
        letter = step.denoiser
        if letter != last_letter:
            entered, last_letter = step.step_index, letter
            if reentry == "recompute":
                signals.pop(letter, None)
        if letter not in rules:
            outcomes.append("compute")
            continue
        name, rule = rules[letter]
        assert step.timestep is not None, "steps are planned from a list of timesteps"
        signal, before = time_signal(denoisers[letter], name, step.timestep), signals.get(letter)
        signals[letter] = signal
        accumulator = accumulators.setdefault(letter, Accumulator())
        is_forced = rule.is_forced(step.step_index, step.num_inference_steps, steps[0].step_index, entered)
        if before is not None and not is_forced and rule.reuses(accumulator, relative_change(signal, before)):
            outcomes.append("reuse")
        else:
            accumulator.distance = 0.0
            outcomes.append("compute")
    return outcomes
