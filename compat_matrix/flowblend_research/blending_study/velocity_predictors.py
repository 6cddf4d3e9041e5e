"""Predictors of the large denoiser's next velocity on the embedded pair: its own past, or the small one's change.

Both denoisers see every step of large-only. From what was known ``gap`` steps before, each predictor guesses the large
velocity after guidance; the figure is the l2 of the error over that of the velocity. Part of
``python -m flowblend_research.blending_study.__main__``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from flowblend_compat_matrix.reference.pair import CALL_DEFAULTS, ReferencePair
from flowblend_compat_matrix.reference.world import Caption

from ..tables import table
from ..training.wan.behaviour import STEPS, generate

GAPS = (1, 2, 3)
GUIDANCE_SCALE = CALL_DEFAULTS["guidance_scale"]
FIRST_STEP = 6
"""Of those that are guessed: earlier ones are the large denoiser's in every schedule worth having."""
LATE_STEPS = range(FIRST_STEP, STEPS)
EARLY_STEPS = range(2, FIRST_STEP)
"""On which the guesses are looked at apart, one step after, to see whether that is so."""


class Branches(NamedTuple):
    """Velocities of both denoisers at one step."""

    large_cond: torch.Tensor
    large_uncond: torch.Tensor
    small_cond: torch.Tensor
    small_uncond: torch.Tensor


@dataclass(frozen=True)
class Trajectory:
    """Trajectory of one prompt: noise levels, and the velocities at every step, flattened.

    ``large`` and ``small`` are after guidance; ``branches`` are before it: both denoisers' for the prompt and without.
    """

    levels: list[float]
    large: list[torch.Tensor]
    small: list[torch.Tensor]
    branches: list[Branches]


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
    denoiser = pair.pipeline.transformer
    for number, caption in enumerate(captions):
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def compare(
            module: nn.Module,
            args: tuple[object, ...],
            kwargs: dict[str, object],
            output: tuple[torch.Tensor, ...],
            seen: list[tuple[torch.Tensor, torch.Tensor]] = seen,
        ) -> None:
            seen.append((output[0].flatten(), pair.small(*args, **kwargs)[0].flatten()))

        handle = denoiser.register_forward_hook(compare, with_kwargs=True)
        try:
            generate(pair, [caption], seed=first_seed + number)
        finally:
            handle.remove()
        levels = pair.pipeline.scheduler.sigmas.tolist()
        branches = [
            Branches(cond[0], uncond[0], cond[1], uncond[1]) for cond, uncond in zip(seen[::2], seen[1::2], strict=True)
        ]
        large = [_guided(one.large_cond, one.large_uncond) for one in branches]
        small = [_guided(one.small_cond, one.small_uncond) for one in branches]
        found.append(Trajectory(levels, large, small, branches))
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
        return one.large[k] + one.branches[i].large_cond - one.branches[k].large_cond

    def corrected(one: Trajectory, i: int, k: int) -> torch.Tensor:
        return one.small[i] + one.large[k] - one.small[k]

    def shared(one: Trajectory, i: int, k: int) -> torch.Tensor:
        return one.large[k] + share * (one.small[i] - one.small[k])

    combinations = {(i, gap): _best_combination(fitted_on, i, i - gap) for gap in GAPS for i in _steps(gap)}

    def combined(one: Trajectory, i: int, k: int) -> torch.Tensor:
        return combinations[i, i - k] @ _known(one, i, k)

    guesses: dict[str, Callable[[Trajectory, int, int], torch.Tensor]] = {
        "the small denoiser's own": lambda one, i, k: one.small[i],
        "the small one's, corrected (undamped)": corrected,
        "the large one's last": last,
        "the large one's last, and the best share of the small one's change": shared,
        "the large one's last two, continued as `forecast` does": line,
        "the large one's for the prompt, now, and its last guidance (half a large step)": conditional,
        "the best combination of all of them but that, branch by branch, fitted to every step": combined,
    }
    return [
        Guess(
            name,
            tuple(_error(guess, tested_on, gap, LATE_STEPS) for gap in GAPS),
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
            for i in LATE_STEPS:
                wanted, change = one.large[i] - one.large[i - gap], one.small[i] - one.small[i - gap]
                weight = float(one.large[i].square().sum())
                above += float(wanted @ change) / weight
                below += float(change @ change) / weight
    return above / below


def _known(one: Trajectory, i: int, k: int) -> torch.Tensor:
    """Known at step ``i`` if the large denoiser answered last at ``k``, each branch by itself: ``[8, N]``."""
    now, last, before = one.branches[i], one.branches[k], one.branches[k - 1]
    large = (last.large_cond, last.large_uncond, before.large_cond, before.large_uncond)
    return torch.stack((*large, now.small_cond, now.small_uncond, last.small_cond, last.small_uncond))


def _best_combination(ones: Sequence[Trajectory], i: int, k: int) -> torch.Tensor:
    """Least squares over the trajectories, each weighing alike, for one step and one gap: ``[8]``."""
    known = torch.cat([_known(one, i, k) / one.large[i].norm() for one in ones], dim=1).double()
    wanted = torch.cat([one.large[i] / one.large[i].norm() for one in ones]).double()
    return torch.linalg.lstsq(known.T, wanted[:, None]).solution[:, 0].float()


def _steps(gap: int) -> Sequence[int]:
    return (*EARLY_STEPS, *LATE_STEPS) if gap == 1 else LATE_STEPS


def _guided(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    return uncond + GUIDANCE_SCALE * (cond - uncond)


def to_markdown(guesses: Sequence[Guess], num_prompts: int) -> list[str]:
    """The section of the page on guesses."""
    return [
        "## What foretells the large denoiser's next velocity",
        "",
        f"On large-only's own trajectories ({num_prompts} more prompts, half to fit on, half to test on), steps "
        f"{FIRST_STEP + 1} to {STEPS}, after guidance: the error of a guess over the velocity, both l2, 1, 2 and 3 "
        "steps after the large denoiser last answered. The last column is of steps "
        f"{EARLY_STEPS[0] + 1} to {EARLY_STEPS[-1] + 1}.",
        "",
        *table(
            ("guess", *(f"+{gap}" for gap in GAPS), "early, +1"),
            (
                (
                    one.name if one.share is None else f"{one.name} ({one.share:.2f})",
                    *(f"{error:.3f}" for error in (*one.errors, one.early_error)),
                )
                for one in guesses
            ),
        ),
        "",
    ]
