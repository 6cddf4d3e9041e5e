"""Intervals over prompts and over rounds of timing, and the price of looking at them several times.

A cell is looked at after 3, 6, 12, 24, 48 and 64 prompts and concluded as soon as it is certain. Each look may err with
a share of the whole error (alpha spending, Lan and DeMets 1983, by the union bound), so that the intervals of all looks
hold together, whenever one stops (repeated confidence intervals, Jennison and Turnbull 1989). Of few prompts the
spread is hardly known: it is averaged with that of a pilot, the blend alone on more prompts (moderated t, Smyth 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

LOOKS = (3, 6, 12, 24, 48, 64)
"""Numbers of prompts at which a cell may be concluded, fixed before anything is measured."""

CONFIDENCE = 0.90
MIN_ROUNDS = 3
"""Rounds of timing below which nothing can be said of how far a ratio spreads."""

_FIRST_SHARE, _LAST_SHARE = 0.2, 0.75
"""Shares of the error at the first and at the last look; those between share what is left."""


class Spread(NamedTuple):
    """Standard deviation over prompts that a figure usually has, and the number of prompts that this counts for."""

    std: float
    weight: int = 8


USUAL_SPREADS = {"psnr_db": Spread(2.5), "ssim": Spread(0.08), "right": Spread(0.3)}
"""Until a pilot on the pair says better; ``right`` is the number of right attributes of a prompt less large-only's."""

NUM_PILOT_PROMPTS = 24
"""Prompts that LSL alone shows before any cell, so that the pair's own spread is known."""


class Estimate(NamedTuple):
    """A mean, and the interval that holds the mean over all prompts (or rounds) like those that were seen."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]

    @property
    def reach(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2.0

    def without_interval(self) -> Estimate:
        """The mean as if it were certain."""
        return Estimate(self.value, self.value, self.value)


def looks_up_to(most: int) -> tuple[int, ...]:
    """Looks where at most so many prompts are shown. Up to three prompts are one look, which makes nothing certain."""
    return (*(number for number in LOOKS if number < most), most)


def error_at(look: int, looks: Sequence[int]) -> float:
    """The probability with which the interval of one look may miss, so that all of them miss with 5 % at most.

    Args:
        look: its place among ``looks``, from 0.
    """
    error = 1.0 - CONFIDENCE
    if len(looks) == 1:
        return error
    if len(looks) == 2:
        return error * (1.0 - _LAST_SHARE if look == 0 else _LAST_SHARE)
    between = (1.0 - _FIRST_SHARE - _LAST_SHARE) / (len(looks) - 2)
    return error * (_FIRST_SHARE if look == 0 else _LAST_SHARE if look == len(looks) - 1 else between)


def estimate_mean(values: Sequence[float], error: float, usual: Spread) -> Estimate:
    """The mean over prompts; the interval misses with probability ``error``.

    Args:
        values: one or more, of one prompt each.
    """
    number, mean = len(values), float(np.mean(values))
    degrees = number - 1
    squares = float(np.var(values)) * number + usual.weight * usual.std**2
    reach = _quantile(degrees + usual.weight, error) * (squares / (degrees + usual.weight) / number) ** 0.5
    return Estimate(mean, mean - reach, mean + reach)


def estimate_kept(right: Sequence[int], large_right: Sequence[int], error: float, usual: Spread) -> Estimate | None:
    """Right attributes over large-only's on the same prompts; ``None`` where large-only has none.

    The interval is that of a ratio of sums, to first order (Cochran 1977, chapter 6).
    """
    total = sum(large_right)
    if not total:
        return None
    kept = sum(right) / total
    rest = [one - kept * other for one, other in zip(right, large_right, strict=True)]
    reach = estimate_mean(rest, error, usual).reach * len(rest) / total
    return Estimate(kept, kept - reach, kept + reach)


def estimate_speed(ratios: Sequence[float]) -> list[float] | None:
    """Interval of a ratio of times from the ratios of single rounds; ``None`` of fewer than three rounds."""
    if len(ratios) < MIN_ROUNDS:
        return None
    logs = np.log(ratios)
    reach = _quantile(len(logs) - 1, 1.0 - CONFIDENCE) * float(np.std(logs, ddof=1)) / len(logs) ** 0.5
    return [float(np.exp(np.mean(logs) - reach)), float(np.exp(np.mean(logs) + reach))]


def std_of_logs(interval: Sequence[float], num_rounds: int) -> float:
    """The spread of the logarithms of single ratios that :func:`estimate_speed` made this interval of."""
    reach = float(np.log(interval[1] / interval[0])) / 2.0
    return reach * num_rounds**0.5 / _quantile(num_rounds - 1, 1.0 - CONFIDENCE)


@cache
def _quantile(degrees: int, error: float) -> float:
    """Bound that Student's t distribution exceeds on either side with probability ``error`` together."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1.0 - error / 2.0))
