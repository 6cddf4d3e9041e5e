"""The search itself: a walk from computed stacks, or without them from the best of optuna's multi-objective TPE.

TPE knows where the early stage ends and how often the large denoiser is recalled. Which steps these should be exactly
is a choice of many at once that no sampler of parameters makes well, and a walk from the front does; a solver or a
forecast that lost among TPE's few trials has its second chance there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from flowblend_plugins.errors import UsageError
from flowblend_plugins.extras import how_to_install

from .front import best_fronts, pareto_front
from .moves import neighbour
from .race import Configuration, Cost, Point, Race
from .space import SearchSpace

MIN_USEFUL_PSNR_DB = 15.0
"""What a first video must reach for a stack to be shown the other prompts: below it no video is the same any more."""
UNDER_BUDGET_DB, OVER_BUDGET_DB = 3.0, 8.0
"""So far from the PSNR that is asked for, moving steps is worth a trial: over it too, because a step less may do."""


@dataclass(frozen=True)
class Found:
    """Result of a search for stacks.

    Attributes:
        front: the Pareto front, measured again on all prompts.
        large: large-only, beside it.
        num_tried: stacks that were measured.
        refused: stacks that cannot work, with the reason; none of them was run.
    """

    front: list[Point]
    large: Point
    num_tried: int
    refused: dict[Configuration, str]


def search(
    race: Race,
    space: SearchSpace,
    num_trials: int,
    seed: int,
    cost: Cost = "time",
    min_psnr_db: float | None = None,
    num_finalists: int = 24,
    prompts_per_trial: int = 3,
    prompts_per_move: int = 6,
    start: Sequence[Configuration] = (),
    report: Callable[[int, str], None] = lambda done, text: None,
) -> Found:
    """Try stacks, and measure the best of them again.

    Args:
        race: with the prompts to tune on; a trial sees the first of them, finalists see all.
        space: what may be tried.
        num_trials: stacks to try; without ``start`` a quarter of them by TPE. What was tried already is not run twice.
        seed: of the sampler. Times are of the machine, so by time a search repeats itself only as far as they do.
        cost: what is saved.
        min_psnr_db: the budget, near which the walk stays; ``None`` for anywhere.
        num_finalists: at most so many are measured again: the front, then what only the front beats, and so on, since a
            trial's own figures are too few to tell neighbours apart.
        prompts_per_trial: that a trial of TPE sees, unless its first video rules it out.
        prompts_per_move: that a trial after them sees, where one step more or less decides.
        start: stacks to walk from, such as computed ones; they are the first trials.
        report: told how many trials are done, and what the last one gave.

    Raises:
        UsageError: optuna is not installed, and there is nothing to start from.
    """
    num_sampled = 0 if start else math.ceil(num_trials / 4)
    measured = [] if start else _sample(race, space, num_sampled, seed, cost, prompts_per_trial, report)
    walk = Walk(race, space, cost, range(min(prompts_per_move, len(race.bench.prompts.texts))), min_psnr_db)
    first = start or [one.configuration for one in pareto_front(measured, cost)]
    moved = walk.go(first, Random(seed), range(num_sampled + 1, num_trials + 1), report)
    finalists = best_fronts(moved or measured, num_finalists, cost)
    again = race.run([one.configuration for one in finalists], range(len(race.bench.prompts.texts)))
    assert race.large is not None
    num_tried = len({one.configuration for one in (*measured, *moved)})
    return Found(pareto_front(again, cost), race.large, num_tried, dict(race.refused))


def _sample(
    race: Race,
    space: SearchSpace,
    num_sampled: int,
    seed: int,
    cost: Cost,
    prompts_per_trial: int,
    report: Callable[[int, str], None],
) -> list[Point]:
    """Points of so many stacks that TPE suggests."""
    optuna = _import_optuna()
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=num_sampled // 4)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    for guess in space.first_guesses():
        study.enqueue_trial(guess)
    known: dict[Configuration, Point | None] = {}
    for done in range(1, num_sampled + 1):
        trial = study.ask()
        configuration = space.suggest(trial)
        if configuration not in known:
            known[configuration] = race.try_one(configuration, range(prompts_per_trial), MIN_USEFUL_PSNR_DB)
        point = known[configuration]
        if point is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            report(done, f"{configuration.text}: refused")
        else:
            study.tell(trial, [point.gain(cost), point.psnr_db])
            report(done, f"{configuration.text}: {point.speedup:.2f}x, {point.psnr_db:.1f} dB")
    return [point for point in known.values() if point is not None]


@dataclass(frozen=True)
class Walk:
    """Walk from a front: one of its stacks is changed in one thing, and joins if nothing beats it."""

    race: Race
    space: SearchSpace
    cost: Cost
    prompt_numbers: range
    min_psnr_db: float | None

    def go(
        self, first: Sequence[Configuration], choice: Random, trials: range, report: Callable[[int, str], None]
    ) -> list[Point]:
        """All points that were measured. The first trials measure the given stacks on the walk's own prompts."""
        waiting = list(first)
        known: dict[Configuration, Point | None] = {}
        for number in trials:
            configuration = waiting.pop(0) if waiting else self._next(known, choice)
            if configuration is None:
                continue
            if configuration not in known:
                known[configuration] = self.race.try_one(configuration, self.prompt_numbers, MIN_USEFUL_PSNR_DB)
            if (point := known[configuration]) is not None:
                report(number, f"{configuration.text}: {point.speedup:.2f}x, {point.psnr_db:.1f} dB")
        return [point for point in known.values() if point is not None]

    def _next(self, known: dict[Configuration, Point | None], choice: Random) -> Configuration | None:
        front = pareto_front([point for point in known.values() if point is not None], self.cost)
        parents = [one for one in front if self._is_near_budget(one)] or front
        return neighbour(self.space, choice.choice(parents).configuration, choice) if parents else None

    def _is_near_budget(self, point: Point) -> bool:
        if self.min_psnr_db is None:
            return True
        return -UNDER_BUDGET_DB <= point.psnr_db - self.min_psnr_db <= OVER_BUDGET_DB


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"`flowblend tune` needs the package optuna, which cannot be imported ({error}). {how_to_install('optuna')}"
        ) from error
    import warnings

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
