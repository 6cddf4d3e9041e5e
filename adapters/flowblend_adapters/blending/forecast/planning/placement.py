"""Dynamic programme that places a number of large steps where the summed error is least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def best_placements(costs: Array) -> list[tuple[tuple[int, ...], float]]:
    """The best placement of 1, 2, ... ``N`` large steps, the first step always among them: (steps, summed cost).

    Args:
        costs: ``[N, N, N + 1]``: of the steps between a large step ``k`` and the next one ``m`` (``N``: none follows),
            where the large step before ``k`` was ``j``; ``j = k = 0`` where there was none. ``costs[j, k, k + 1]`` is
            0.
    """
    number = len(costs)
    steps = np.arange(number)
    least = np.full((number, number), np.inf)  # [j, k]: of the best way to have had these as the last two large steps
    least[0, 0] = 0.0
    origins: list[NDArray[np.int64]] = []
    found = []
    for _ in range(number):
        total = least + costs[:, :, number]
        j, k = (int(one) for one in np.unravel_index(np.argmin(total), total.shape))
        found.append((_path(origins, j, k), float(total[j, k])))
        following = least[:, :, None] + costs[:, :, :number]  # [j, k, m]
        following[:, steps[:, None] >= steps[None, :]] = np.inf
        origins.append(np.argmin(following, axis=0))
        least = following.min(axis=0)
    return found


def _path(origins: list[NDArray[np.int64]], j: int, k: int) -> tuple[int, ...]:
    """The large steps up to ``j`` and ``k``."""
    path = [k]
    for before in reversed(origins):
        j, k = int(before[j, k]), j
        path.append(k)
    return tuple(path[::-1])
