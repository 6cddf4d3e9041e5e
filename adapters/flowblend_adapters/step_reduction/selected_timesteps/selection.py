"""Selection of a few noise levels of a dense run, on which an Euler solver errs least.

Dynamic programming over the levels of a reference trajectory, as in Optimal Stepsize (Pei, Hu and Gu, 2025, arXiv
2503.21774) and before it Watson et al. (2021, arXiv 2106.03802). Pei et al. run the denoiser anew from every candidate
state; here the error of a candidate step is read off the dense trajectory itself, so no further denoiser call is
needed: an Euler step from one level to another moves the sample along the velocity at the first, and the dense run says
where it should have gone. Both are sums of the dense velocities, so their inner products are all that has to be known
of a run, and runs of several prompts are added up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def select_levels(sigmas: Sequence[float], gram: ArrayLike, num_steps: Sequence[int]) -> dict[int, list[int]]:
    """Indices into ``sigmas`` to sample at, for each number of steps, with the least summed error of the steps.

    Args:
        sigmas: the ``N`` dense noise levels, falling, without the final 0.
        gram: inner products ``[N, N]`` of the velocities there, the sum over runs.
        num_steps: how many levels to keep, each from 1 to ``N``. The first level is always kept; the step after the
            last goes to 0.

    Raises:
        ValueError: a number of steps that cannot be.
    """
    num_dense = len(sigmas)
    if not all(1 <= count <= num_dense for count in num_steps):
        raise ValueError(f"num_steps={list(num_steps)}: expected 1 to {num_dense}, the number of dense noise levels")
    errors = step_errors(sigmas, gram)
    # least[j]: error of the best path to level j in as many steps as were gone through; came_from[...][j]: from where.
    least = np.full(num_dense + 1, np.inf)
    least[0] = 0.0
    came_from: list[NDArray[np.int64]] = []
    for _ in range(max(num_steps)):
        through = least[:num_dense, None] + errors
        came_from.append(np.argmin(through, axis=0))
        least = through.min(axis=0)
    return {count: _path(came_from[:count], num_dense) for count in num_steps}


def step_errors(sigmas: Sequence[float], gram: ArrayLike) -> Array:
    """Error of an Euler step from level k to j against the dense run: ``[N, N + 1]``, infinite for j <= k.

    Args:
        sigmas: the ``N`` dense noise levels, falling; the final 0 is level ``N``.
        gram: inner products ``[N, N]`` of the velocities at them.
    """
    levels, products = np.append(np.asarray(sigmas, np.float64), 0.0), np.asarray(gram, np.float64)
    num_dense = len(levels) - 1
    # The dense run is at level j after the sum over m < j of (levels[m + 1] - levels[m]) v_m.
    moved = np.tri(num_dense + 1, num_dense, -1) * np.diff(levels)  # [level, velocity]
    along = moved @ products  # <x_j - x_0, v_k> as [j, k]
    between = moved @ products @ moved.T  # <x_j - x_0, x_k - x_0>
    errors = np.full((num_dense, num_dense + 1), np.inf)
    for k in range(num_dense):
        later = np.arange(k + 1, num_dense + 1)
        step = levels[later] - levels[k]
        gone = between[later, later] + between[k, k] - 2.0 * between[k, later]  # |x_j - x_k|^2
        squared = gone + step**2 * products[k, k] - 2.0 * step * (along[later, k] - along[k, k])
        errors[k, later] = np.sqrt(np.clip(squared, 0.0, None))
    return errors


def _path(came_from: Sequence[NDArray[np.int64]], final: int) -> list[int]:
    """The levels that the best path to the final one starts its steps from."""
    path = [final]
    for origins in reversed(came_from):
        path.append(int(origins[path[-1]]))
    return path[:0:-1]
