"""The stacks that a search may try: boundaries, recalls, correction, solver, steps and cache, together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .race import Configuration

MIN_STEPS = 6
MAX_RECALLS = 5
CORRECTIONS = ("none", "corrected", "guided_refresh", "forecast")
CACHED = ("LS", "L", "S")
CACHES: Mapping[str, tuple[float, float]] = {
    "first_block_cache": (0.05, 0.6),
    "teacache": (0.05, 0.5),
    "sea_cache": (0.05, 0.6),
}
"""Adapters of feature caches with a threshold, and its range."""


class Suggest(Protocol):
    """What an ``optuna.trial.Trial`` offers."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float: ...


@dataclass(frozen=True)
class SearchSpace:
    """Of one pair.

    Attributes:
        num_steps: of large-only; fewer may be tried.
        samplers: solvers that the pipeline takes, each at one spacing of its steps, as the text of an adapter with
            ``{}`` for the number of steps; the first stands for the pipeline's own.
        caches: names from :data:`CACHES` that the pipeline takes.
    """

    num_steps: int
    samplers: tuple[str, ...]
    caches: tuple[str, ...]

    def suggest(self, trial: Suggest) -> Configuration:
        """One stack. Parameters are fractions of the steps, so that they mean the same at any number of them."""
        num_steps = trial.suggest_int("num_steps", min(MIN_STEPS, self.num_steps), self.num_steps)
        adapters = []
        sampler = trial.suggest_categorical("sampler", self.samplers)
        if num_steps != self.num_steps or sampler != self.samplers[0]:
            adapters.append(sampler.format(num_steps))
        early = max(1, round(trial.suggest_float("early", 0.05, 0.6, step=0.05) * num_steps))
        late = round(trial.suggest_float("late", 0.0, 0.3, step=0.05) * num_steps)
        correction = trial.suggest_categorical("correction", CORRECTIONS)
        recalls = trial.suggest_int("recalls", 0, MAX_RECALLS) if correction in ("none", "corrected") else 0
        schedule = schedule_text(num_steps, early, late, recalls)
        if correction == "corrected":
            adapters.append(f"corrected(damping={trial.suggest_float('damping', 0.0, 1.5, step=0.25)})")
        elif correction == "guided_refresh":
            adapters.append(f"guided_refresh(threshold={trial.suggest_float('refresh', 0.05, 0.6, step=0.05):.2f})")
        elif correction == "forecast":
            recall_every = trial.suggest_int("recall_every", 2, 6)
            trend = trial.suggest_float("trend", 0.0, 1.5, step=0.25)
            adapters.append(f"forecast(recall_every={recall_every}, trend={trend})")
        cache = trial.suggest_categorical("cache", ("none", *self.caches))
        if cache != "none":
            low, high = CACHES[cache]
            threshold = trial.suggest_float(f"{cache}_threshold", low, high, step=0.025)
            cached = trial.suggest_categorical("cached", CACHED)
            adapters.append(f"{cache}(threshold={threshold:.3f}, denoisers={cached!r})")
        return Configuration(schedule, tuple(adapters))

    def first_guesses(self) -> list[dict[str, Any]]:
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
        return [
            plain,
            forecast,
            forecast | {"early": 0.25, "recall_every": 4},
            forecast | {"early": 0.2},
            *(forecast | {"num_steps": fewer, "sampler": sampler} for sampler in self.samplers[1:]),
            plain | {"correction": "corrected", "damping": 1.0},
            recalled,
            recalled | {"num_steps": fewer},
            plain | {"correction": "guided_refresh", "refresh": 0.2, "late": 0.0, "early": 0.3},
            *cached,
        ]


def schedule_text(num_steps: int, early: int, late: int, recalls: int) -> str:
    """Runs of a schedule: an early and a late stage, and single large steps evenly between them."""
    between = num_steps - early - late
    if between <= 0:
        return f"L:{num_steps}"
    places = {(number + 1) * between // (recalls + 1) for number in range(recalls)}
    middle = "".join("L" if index in places else "S" for index in range(between))
    letters = "L" * early + middle + "L" * late
    runs: list[tuple[str, int]] = []
    for letter in letters:
        if runs and runs[-1][0] == letter:
            runs[-1] = (letter, runs[-1][1] + 1)
        else:
            runs.append((letter, 1))
    return ",".join(f"{letter}:{num}" for letter, num in runs)
