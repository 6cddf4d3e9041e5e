"""The search itself: optuna's multi-objective TPE over cost and fidelity, then single large steps of the best moved.

TPE knows where the early stage ends and how often the large denoiser is recalled. Which steps these should be exactly is
a choice of many at once that no sampler of parameters makes well, and a walk from the front does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from flowblend_plugins.errors import UsageError

from .front import best_fronts, pareto_front
from .race import Configuration, Cost, Point, Race
from .space import SearchSpace, neighbour

MIN_USEFUL_PSNR_DB = 15.0
"""What a first video must reach for a stack to be shown the other prompts: below it no video is the same any more."""
MAX_USEFUL_PSNR_DB = 45.0
"""Nobody sees a difference beyond it, so no trial is spent on moving steps there."""


@dataclass(frozen=True)
class Found:
    """What a search found.

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
    num_finalists: int = 24,
    prompts_per_trial: int = 3,
    prompts_per_move: int = 6,
    report: Callable[[int, str], None] = lambda done, text: None,
) -> Found:
    """Try stacks, and measure the best of them again.

    Args:
        race: with the prompts to tune on; a trial sees the first of them, finalists see all.
        space: what may be tried.
        num_trials: stacks to try, half of them by TPE; what was tried already is not run twice.
        seed: of the sampler. Times are of the machine, so by time a search repeats itself only as far as they do.
        cost: what is saved.
        num_finalists: at most so many are measured again: the front, then what only the front beats, and so on, since a
            trial's own figures are too few to tell neighbours apart.
        prompts_per_trial: that a trial of TPE sees, unless its first video rules it out.
        prompts_per_move: that a trial after them sees, where one step more or less decides.
        report: told how many trials are done, and what the last one gave.

    Raises:
        UsageError: optuna is not installed.
    """
    optuna = _import_optuna()
    num_sampled = math.ceil(num_trials / 2)
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
    measured = [point for point in known.values() if point is not None]
    moved = _moved(race, measured, num_trials - num_sampled, Random(seed), cost, prompts_per_move, report, num_sampled)
    finalists = best_fronts(moved or measured, num_finalists, cost)
    again = race.run([one.configuration for one in finalists], range(len(race.bench.prompts.texts)))
    assert race.large is not None
    return Found(
        pareto_front(again, cost),
        race.large,
        len({one.configuration for one in (*measured, *moved)}),
        dict(race.refused),
    )


def _moved(
    race: Race,
    found: list[Point],
    num_trials: int,
    choice: Random,
    cost: Cost,
    num_prompts: int,
    report: Callable[[int, str], None],
    done: int,
) -> list[Point]:
    """A walk from the front: one of its stacks has a large step moved, and joins if nothing beats it.

    The front it starts from is measured on the walk's own prompts first, as part of the trials.
    """
    numbers = range(min(num_prompts, len(race.bench.prompts.texts)))
    waiting = [one.configuration for one in pareto_front(found, cost)]
    known: dict[Configuration, Point | None] = {}
    for number in range(done + 1, done + num_trials + 1):
        measured = [point for point in known.values() if point is not None]
        if waiting:
            configuration = waiting.pop(0)
        else:
            useful = [one for one in pareto_front(measured, cost) if one.psnr_db <= MAX_USEFUL_PSNR_DB]
            near = neighbour(choice.choice(useful).configuration, choice) if useful else None
            if near is None:
                continue
            configuration = near
        if configuration not in known:
            known[configuration] = race.try_one(configuration, numbers, MIN_USEFUL_PSNR_DB)
        if (point := known[configuration]) is not None:
            report(number, f"{configuration.text}: {point.speedup:.2f}x, {point.psnr_db:.1f} dB")
    return [point for point in known.values() if point is not None]


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"`flowblend tune` needs the package optuna, which cannot be imported ({error}). "
            "Run: pip install 'flowblend-plugins[tune]'"
        ) from error
    import warnings

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
