"""What foretells the large denoiser's next velocity on the embedded pair: itself, or the small one's change?

Both denoisers see every step of large-only. From what was known ``gap`` steps before, each predictor guesses the large
velocity after guidance; the figure is the l2 of the error over that of the velocity. Part of
``python -m flowblend_compat_matrix.blending_study``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .reference.behaviour import STEPS, generate
from .reference.pair import CALL_DEFAULTS, ReferencePair
from .reference.world import Caption

GAPS = (1, 2, 3)
GUIDANCE_SCALE = CALL_DEFAULTS["guidance_scale"]
FIRST_STEP = 6
"""Of those that are guessed: earlier ones are the large denoiser's in every schedule worth having."""
EARLY_STEPS = range(2, FIRST_STEP)
"""On which the guesses are looked at apart, one step after, to see whether that is so."""


@dataclass(frozen=True)
class Trajectory:
    """Of one prompt: noise levels, and the velocities after guidance at every step, flattened.

    ``conditional`` is the large denoiser's velocity before guidance, of the branch that saw the prompt.
    """

    levels: list[float]
    large: list[torch.Tensor]
    conditional: list[torch.Tensor]
    small: list[torch.Tensor]


@dataclass(frozen=True)
class Guess:
    """A predictor's mean relative error by gap, and early at gap 1; ``share`` is what was fitted, where it was."""

    name: str
    errors: tuple[float, ...]
    early_error: float
    share: float | None = None


def record(pair: ReferencePair, captions: Sequence[Caption], first_seed: int) -> list[Trajectory]:
    """Large-only's trajectories with the small denoiser in the shadow."""
    found = []
    large = pair.pipeline.transformer
    for number, caption in enumerate(captions):
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def compare(module: Any, args: Any, kwargs: Any, output: Any, seen: Any = seen) -> None:
            seen.append((output[0].flatten(), pair.small(*args, **kwargs)[0].flatten()))

        handle = large.register_forward_hook(compare, with_kwargs=True)
        try:
            generate(pair, [caption], seed=first_seed + number)
        finally:
            handle.remove()
        levels = pair.pipeline.scheduler.sigmas.tolist()
        guided = [
            tuple(uncond + GUIDANCE_SCALE * (cond - uncond) for cond, uncond in zip(*both, strict=True))
            for both in zip(seen[::2], seen[1::2], strict=True)
        ]
        conditional = [cond[0] for cond in seen[::2]]
        found.append(Trajectory(levels, [one[0] for one in guided], conditional, [one[1] for one in guided]))
    return found


def compare_predictors(pair: ReferencePair, captions: Sequence[Caption], first_seed: int = 90_000) -> list[Guess]:
    """Predictors on the second half of the prompts; what is fitted is fitted on the first half."""
    trajectories = record(pair, captions, first_seed)
    fitted_on, tested_on = trajectories[: len(captions) // 2], trajectories[len(captions) // 2 :]
    share = _best_share(fitted_on)

    def last(one: Trajectory, i: int, k: int) -> torch.Tensor:
        return one.large[k]

    def line(one: Trajectory, i: int, k: int) -> torch.Tensor:
        passed = (one.levels[i] - one.levels[k]) / (one.levels[k] - one.levels[k - 1])
        weight = (1.0 - one.levels[i] / one.levels[0]) ** 2
        return one.large[k] + weight * passed * (one.large[k] - one.large[k - 1])

    def conditional(one: Trajectory, i: int, k: int) -> torch.Tensor:
        return one.conditional[i] + one.large[k] - one.conditional[k]

    def corrected(one: Trajectory, i: int, k: int) -> torch.Tensor:
        return one.small[i] + one.large[k] - one.small[k]

    def shared(one: Trajectory, i: int, k: int) -> torch.Tensor:
        return one.large[k] + share * (one.small[i] - one.small[k])

    guesses: dict[str, Callable[[Trajectory, int, int], torch.Tensor]] = {
        "the small denoiser's own": lambda one, i, k: one.small[i],
        "the small one's, corrected (undamped)": corrected,
        "the large one's last": last,
        "the large one's last, and the best share of the small one's change": shared,
        "the large one's last two, continued as `forecast` does": line,
        "the large one's for the prompt, now, and its last guidance (half a large step)": conditional,
    }
    return [
        Guess(
            name,
            tuple(_error(guess, tested_on, gap, range(FIRST_STEP, STEPS)) for gap in GAPS),
            _error(guess, tested_on, 1, EARLY_STEPS),
            share if guess is shared else None,
        )
        for name, guess in guesses.items()
    ]


def _error(
    guess: Callable[[Trajectory, int, int], torch.Tensor], ones: Sequence[Trajectory], gap: int, steps: range
) -> float:
    errors = [
        float((guess(one, i, i - gap) - one.large[i]).norm() / one.large[i].norm()) for one in ones for i in steps
    ]
    return statistics.fmean(errors)


def _best_share(ones: Sequence[Trajectory]) -> float:
    """Least squares of the large velocity's change on the small one's, every step and gap weighing alike."""
    above = below = 0.0
    for one in ones:
        for gap in GAPS:
            for i in range(FIRST_STEP, STEPS):
                wanted, change = one.large[i] - one.large[i - gap], one.small[i] - one.small[i - gap]
                weight = float(one.large[i].square().sum())
                above += float(wanted @ change) / weight
                below += float(change @ change) / weight
    return above / below


def to_markdown(guesses: Sequence[Guess], num_prompts: int) -> list[str]:
    """The section of the page."""
    lines = [
        "## What foretells the large denoiser's next velocity",
        "",
        f"On large-only's own trajectories ({num_prompts} more prompts, half to fit on, half to test on), steps "
        f"{FIRST_STEP + 1} to {STEPS}, after guidance: the error of a guess over the velocity, both l2, 1, 2 and 3 "
        "steps after the large denoiser last answered. The last column is of steps "
        f"{EARLY_STEPS[0] + 1} to {EARLY_STEPS[-1] + 1}.",
        "",
        f"| guess | {' | '.join(f'+{gap}' for gap in GAPS)} | early, +1 |",
        "|---|" + "---|" * (len(GAPS) + 1),
    ]
    for guess in guesses:
        name = guess.name if guess.share is None else f"{guess.name} ({guess.share:.2f})"
        lines.append(f"| {name} | {' | '.join(f'{error:.3f}' for error in (*guess.errors, guess.early_error))} |")
    return [*lines, ""]
