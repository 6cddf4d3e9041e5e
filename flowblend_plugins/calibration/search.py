"""Choosing stage boundaries from what trials measure; pure functions of two measurements.

The early boundary is the shortest early stage for which LSS stays alike to LLL (FlowBlending, arXiv 2512.24724). The
late boundary is where detail stops improving: with ``h(l)`` the artefact metric of LSL and ``M`` the steps that are
left behind the early stage, the late stage of ``l`` steps that minimises

    h(l) / h(0) + l / M,

that is, the last step that removes at least its share of the artefacts of LSS. Both ends of that sum are 1: without a
late stage, and with nothing but it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

Trial = Callable[[int, int], float]
"""Of ``(early_steps, late_steps)``, the mean over the prompts."""


@dataclass(frozen=True, kw_only=True)
class Boundaries:
    """Boundaries that a search found, in steps.

    Attributes:
        early_steps, late_steps: lengths of the two stages of the large denoiser.
        late_is_limited: detail was still improving where the budget ended.
    """

    early_steps: int
    late_steps: int
    late_is_limited: bool = False


def resolution(num_steps: int) -> int:
    """Steps between two candidates: a twentieth of them, at least one."""
    return max(1, round(num_steps / 20))


def candidates(num_steps: int, unit: int) -> list[int]:
    """Lengths of a stage that are tried: multiples of the unit, and all steps."""
    return [*range(0, num_steps, unit), num_steps]


def shortest_early(similarity: Trial, num_steps: int, threshold: float, unit: int) -> int:
    """Find by bisection an early stage within the threshold whose shorter neighbour is outside.

    All steps are within it by definition (it is the large denoiser alone), and are not tried.
    """
    lengths = candidates(num_steps, unit)
    outside, within = -1, len(lengths) - 1
    while within - outside > 1:
        middle = (outside + within + 1) // 2  # the longer half, which costs fewer small steps
        if similarity(lengths[middle], 0) >= threshold:
            within = middle
        else:
            outside = middle
    return lengths[within]


def sufficient_late(
    artefact: Trial, num_steps: int, early_steps: int, unit: int, may_try: Callable[[int], bool] = lambda late: True
) -> tuple[int, bool]:
    """Scan late stages from below until a longer one is worth less than its steps.

    It begins with two units: with a multistep solver the first step after a switch is worth less than those behind it.

    Args:
        may_try: whether a trial of so many late steps is affordable.

    Returns:
        Steps of the late stage, and whether the scan was ended by ``may_try``.
    """
    left = num_steps - early_steps
    without = artefact(early_steps, 0) if left else 0.0
    if without <= 0.0:
        return 0, False

    def price(late: int) -> float:
        return artefact(early_steps, late) / without + late / left

    best, lowest = 0, 1.0
    for late in range(2 * unit, left, unit):
        if not may_try(late):
            return best, True
        if (found := price(late)) >= lowest:
            break
        best, lowest = late, found
    if best in (0, 2 * unit) and unit < left:
        if not may_try(unit):
            return best, True
        if price(unit) < lowest:
            best = unit
    return best, False


def boundaries_on_grid(similarity: Trial, artefact: Trial, num_steps: int, threshold: float, unit: int) -> Boundaries:
    """Try every candidate for both boundaries; the oracle of the search."""
    lengths = candidates(num_steps, unit)
    early = 0
    for shorter, longer in itertools.pairwise(lengths):
        if similarity(shorter, 0) < threshold:
            early = longer
    left = num_steps - early
    without = artefact(early, 0) if left else 0.0
    if without <= 0.0:
        return Boundaries(early_steps=early, late_steps=0)
    prices = {late: artefact(early, late) / without + late / left for late in range(unit, left, unit)} | {0: 1.0}
    return Boundaries(early_steps=early, late_steps=min(sorted(prices), key=prices.__getitem__))
