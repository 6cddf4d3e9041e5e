"""The stacks that a search may try: boundaries, recalls, correction, solver, steps and cache, together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flowblend_adapters.blending.forecast.moments import VelocityMoments
from flowblend_adapters.blending.forecast.planning.plan import plan_front

from .race import Configuration

Choice = TypeVar("Choice", str, float)
MIN_STEPS = 6
MAX_RECALLS = 5
CORRECTIONS = ("none", "corrected", "guided_refresh", "forecast")
FITTED = "fitted_forecast"
TRENDS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
CACHED = ("LS", "L", "S")
CACHES: Mapping[str, tuple[float, float]] = {
    "first_block_cache": (0.05, 0.6),
    "teacache": (0.05, 0.5),
    "sea_cache": (0.05, 0.6),
}
"""Adapters of feature caches with a threshold, and its range."""


class Suggest(Protocol):
    """Methods of an ``optuna.trial.Trial`` that a search space calls."""

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice: ...

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float: ...


@dataclass(frozen=True)
class SearchSpace:
    """Stacks that may be tried on one pair.

    Attributes:
        num_steps: of large-only; fewer may be tried.
        samplers: solvers that the pipeline takes, each at one spacing of its steps, as the text of an adapter with
            ``{}`` for the number of steps; the first stands for the pipeline's own.
        caches: names from :data:`CACHES` that the pipeline takes.
        moments: of the large denoiser's velocities, as ``forecast`` takes them; ``None`` where there are none.
    """

    num_steps: int
    samplers: tuple[str, ...]
    caches: tuple[str, ...]
    moments: str | None = None

    def suggest(self, trial: Suggest) -> Configuration:
        """Draw one stack from a trial; parameters are fractions of the steps, whatever their number is."""
        num_steps = trial.suggest_int("num_steps", min(MIN_STEPS, self.num_steps), self.num_steps)
        adapters = []
        sampler = trial.suggest_categorical("sampler", self.samplers)
        early = max(1, round(trial.suggest_float("early", 0.05, 0.6, step=0.05) * num_steps))
        late = round(trial.suggest_float("late", 0.0, 0.3, step=0.05) * num_steps)
        corrections = CORRECTIONS if self.moments is None else (*CORRECTIONS, FITTED)
        correction = trial.suggest_categorical("correction", corrections)
        recalls = trial.suggest_int("recalls", 0, MAX_RECALLS) if correction in ("none", "corrected") else 0
        between = num_steps - early - late
        places = {(number + 1) * between // (recalls + 1) for number in range(recalls)}
        if correction == "corrected":
            adapters.append(f"corrected(damping={trial.suggest_float('damping', 0.0, 1.5, step=0.25)})")
        elif correction == "guided_refresh":
            adapters.append(f"guided_refresh(threshold={trial.suggest_float('refresh', 0.05, 0.6, step=0.05):.2f})")
        elif correction in ("forecast", FITTED):
            recall_every = trial.suggest_int("recall_every", 2, 6)
            places = set(range(recall_every - 1, between, recall_every))
            is_fitted = correction == FITTED
            adapters.append(self._fitted if is_fitted else _line(trial.suggest_categorical("trend", TRENDS)))
        cache = trial.suggest_categorical("cache", ("none", *self.caches))
        if cache != "none":
            low, high = CACHES[cache]
            threshold = trial.suggest_float(f"{cache}_threshold", low, high, step=0.025)
            cached = trial.suggest_categorical("cached", CACHED)
            adapters.append(f"{cache}(threshold={threshold:.3f}, denoisers={cached!r})")
        middle = "".join("L" if index in places else "S" for index in range(between))
        letters = "L" * early + middle + "L" * late
        return self.put_together(letters[:num_steps], sampler, tuple(adapters))

    @property
    def forecasts(self) -> tuple[str, ...]:
        """Every ``forecast`` that may be tried; the schedule says where the large denoiser is recalled."""
        lines = tuple(_line(trend) for trend in TRENDS)
        return lines if self.moments is None else (*lines, self._fitted)

    def computed(self, min_psnr_db: float | None) -> list[Configuration]:
        """Stacks that follow from the moments without trials, the nearest to a budget first.

        There are none where the moments do not know the pipeline's own sampler at this number of steps.
        """
        if self.moments is None:
            return []
        moments = VelocityMoments.read(self.moments)
        if moments.own_sampling is None or moments.own_sampling.sampler.num_steps != self.num_steps:
            return []
        front = [one for one in plan_front(moments, self.moments) if 1 < len(one.large_steps) < self.num_steps]
        front.sort(key=lambda one: 0.0 if None in (min_psnr_db, one.psnr_db) else abs(one.psnr_db - min_psnr_db))  # type: ignore[operator]
        return [self.put_together(one.letters, self.samplers[0], (self._fitted,)) for one in front]

    @property
    def _fitted(self) -> str:
        return f"forecast(recall_every=0, moments={self.moments!r})"

    def put_together(self, letters: str, sampler: str, rest: tuple[str, ...]) -> Configuration:
        """The stack with these denoisers, one letter a step, this one of :attr:`samplers`, and other adapters."""
        is_own = len(letters) == self.num_steps and sampler == self.samplers[0]
        solver = () if is_own else (sampler.format(len(letters)),)
        return Configuration(schedule_text(letters), (*solver, *rest))

    def taken_apart(self, configuration: Configuration) -> tuple[str, str, tuple[str, ...]]:
        """Parts that :meth:`put_together` makes this stack of."""
        letters, adapters = letters_of(configuration.schedule), configuration.adapters
        solvers = {text.format(len(letters)): text for text in self.samplers}
        sampler = next((solvers[text] for text in adapters if text in solvers), self.samplers[0])
        return letters, sampler, tuple(text for text in adapters if text not in solvers)

    def first_guesses(self) -> list[dict[str, int | float | str]]:
        """Worth trying before anything is known: blending, forecast, corrected, recalled, fewer steps, with a cache."""
        plain = {
            "num_steps": self.num_steps, "sampler": self.samplers[0], "early": 0.4, "late": 0.2, "correction": "none",
            "recalls": 0, "cache": "none",
        }  # fmt: skip
        fewer = max(MIN_STEPS, round(0.7 * self.num_steps))
        recalled = plain | {"correction": "corrected", "damping": 0.5, "late": 0.0, "early": 0.3, "recalls": 4}
        cached = [
            recalled | {"cache": name, f"{name}_threshold": CACHES[name][0] + 0.05, "cached": "LS"}
            for name in self.caches
        ]
        forecast = plain | {"correction": "forecast", "recall_every": 3, "trend": 1.0, "late": 0.0, "early": 0.3}
        fitted = [] if self.moments is None else [forecast | {"correction": FITTED, "recall_every": n} for n in (3, 5)]
        return [
            plain,
            forecast,
            *fitted,
            forecast | {"early": 0.25, "recall_every": 4},
            forecast | {"early": 0.2},
            *(forecast | {"num_steps": fewer, "sampler": sampler} for sampler in self.samplers[1:]),
            plain | {"correction": "corrected", "damping": 1.0},
            recalled,
            recalled | {"num_steps": fewer},
            plain | {"correction": "guided_refresh", "refresh": 0.2, "late": 0.0, "early": 0.3},
            *cached,
        ]


def schedule_text(letters: str) -> str:
    """The schedule with these denoisers, one letter a step."""
    return ",".join(f"{letter}:{len(list(run))}" for letter, run in itertools.groupby(letters))


def _line(trend: float) -> str:
    return f"forecast(recall_every=0, trend={trend})"


def letters_of(schedule: str) -> str:
    """The denoiser of every step of a schedule that :func:`schedule_text` wrote."""
    return "".join(run[0] * int(run[2:]) for run in schedule.split(","))
