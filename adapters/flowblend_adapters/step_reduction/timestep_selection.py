"""Which few noise levels of a dense run to keep, so that a solver errs least on what was seen in that run.

Dynamic programming over the levels of a reference trajectory, as in Optimal Stepsize (Pei, Hu and Gu, 2025, arXiv
2503.21774) and before it Watson et al. (2021, arXiv 2106.03802). Pei et al. run the denoiser anew from every candidate
state; here the error of a candidate step is read off the dense trajectory itself, so no further denoiser call is
needed: a step from level k to j moves the sample by what the solver makes of the velocities at k (and at the level i
before it), and the dense run says where it should have gone. Both are sums of the dense velocities, so their inner
products are all that has to be known of a run, and runs of several prompts are added up.

The solver is the two-step Adams-Bashforth method, which stands for the multistep solvers of order 2, or Euler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ORDERS = (1, 2)


def select_levels(sigmas: Sequence[float], gram: Any, num_steps: Sequence[int], order: int) -> dict[int, list[int]]:
    """Indices into ``sigmas`` to sample at, for each number of steps, with the least summed error of the steps.

    Args:
        sigmas: the ``N`` dense noise levels, falling, without the final 0.
        gram: inner products ``[N, N]`` of the velocities there, the sum over runs.
        num_steps: how many levels to keep, each from 1 to ``N``. The first level is always kept; the step after the
            last goes to 0.
        order: of the solver, 1 or 2.

    Raises:
        ValueError: a number of steps or an order that cannot be.
    """
    levels = np.append(np.asarray(sigmas, np.float64), 0.0)
    num_dense = len(levels) - 1
    if not all(1 <= count <= num_dense for count in num_steps):
        raise ValueError(f"num_steps={list(num_steps)}: expected 1 to {num_dense}, the number of dense noise levels")
    if order not in ORDERS:
        raise ValueError(f"order={order}: expected 1 or 2")
    errors = step_errors(levels, np.asarray(gram, np.float64), order)
    return _least(errors, max(num_steps), num_steps)


def step_errors(levels: Array, gram: Array, order: int) -> Array:
    """Error ``[i, k, j]`` of a step from level k to j after one from i; the first has i = k; inf where no step is.

    It is the norm of the difference between the displacement of the solver and that of the dense run.

    Args:
        levels: ``[N + 1]``, falling, with the final one.
        gram: ``[N, N]``.
        order: 1 or 2. Of order 1, i does not matter.
    """
    num_dense = len(levels) - 1
    widths = np.diff(levels)  # negative: the dense Euler steps
    moved = np.vstack([np.zeros(num_dense), np.tril(np.ones((num_dense, num_dense))) * widths])  # [level, velocity]
    with_velocity = moved @ gram  # <x_j - x_0, v_k> as [j, k]
    between = moved @ gram @ moved.T  # <x_j - x_0, x_k - x_0>
    squared = np.diag(between)[None, :] + np.diag(between)[:, None] - 2.0 * between  # |x_j - x_k|^2 as [k, j]
    found = np.full((num_dense, num_dense, num_dense + 1), np.inf)
    for k in range(num_dense):
        after = slice(k + 1, num_dense + 1)
        step = levels[after] - levels[k]
        along = with_velocity[after] - with_velocity[k]  # <x_j - x_k, v_i> as [j, i]
        for i in range(k + 1):
            # The line through the velocities at i and k, integrated from k to j; with i = k (or order 1) it is flat.
            slope = 0.0 if i == k or order == 1 else 0.5 / (levels[k] - levels[i])
            of_last, of_before = step + slope * step**2, -slope * step**2
            error = (
                squared[k, after]
                + of_last**2 * gram[k, k]
                + of_before**2 * gram[i, i]
                + 2.0 * of_last * of_before * gram[i, k]
                - 2.0 * of_last * along[:, k]
                - 2.0 * of_before * along[:, i]
            )
            found[i, k, after] = np.sqrt(np.clip(error, 0.0, None))
    return found


def _least(errors: Array, most: int, wanted: Sequence[int]) -> dict[int, list[int]]:
    """Shortest paths of every number of steps from level 0 to the final one; states are pairs of levels."""
    num_dense, _, num_levels = errors.shape
    final = num_levels - 1
    # best[k, j]: least error of a path that ends with the step from k to j.
    best = np.full((num_dense, num_levels), np.inf)
    best[0] = errors[0, 0]
    before: list[NDArray[np.int64]] = []
    found: dict[int, list[int]] = {}
    for count in range(1, most + 1):
        if count in wanted:
            last = int(np.argmin(best[:, final]))
            path = [last]
            for came_from in reversed(before):
                path.append(int(came_from[path[-1], path[-2] if len(path) > 1 else final]))
            found[count] = path[::-1]
        # A first step out of level 0 is the only one with i = k.
        later = errors.copy()
        later[np.arange(num_dense), np.arange(num_dense)] = np.inf
        through = best[:, :num_dense, None] + later  # [i, k, j]
        came_from = np.argmin(through, axis=0)
        best = np.take_along_axis(through, came_from[None], axis=0)[0]
        before.append(came_from)
    return found
