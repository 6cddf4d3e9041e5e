"""Expected errors of forecasts in the final video, computed from second moments of the velocities.

A forecast at step ``i`` is the least-squares combination of the last two large steps' velocities, so its expected error
follows from their inner products. The sampler hands that error on with its own weight ``c_i``. What becomes of it until
the end depends on when it is made: an error ``d`` of a noisy sample ``alpha x + sigma n`` is an error ``d / alpha`` of
the clean video ``x``, as long as the noise does not hide it:

``g_i = 1 / sqrt(alpha_i^2 + sigma_i^2 / growth)``.

The one constant, ``growth``, is the denoiser's own: a calibration fits it to a few stacks that it runs.

Errors of forecasts in a row, from the same two large steps, point the same way and are added up as vectors; errors of
different runs are taken as independent. The expected squared error of a stack is

``sum over runs of E | sum over i in the run of c_i g_i (forecast_i - velocity_i) |^2``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flowblend_plugins import UsageError

from ..moments import RIDGE, Place, VelocityMoments
from ..sampler import Sampler

Array = NDArray[np.float64]

UNRELATED = 2.0
"""Squared distance of two latents that have nothing in common, in units of their variance: where errors end growing."""


def guidance_weights(branches: Sequence[str | None], guidance_scale: float | None) -> Array:
    """Weight of each branch in the guided velocity ``u + s (c - u)``.

    Raises:
        UsageError: the branches are not those of classifier-free guidance, or its scale is not known.
    """
    if len(branches) == 1:
        return np.ones(1)
    if set(branches) != {"cond", "uncond"} or guidance_scale is None:
        raise UsageError(
            f"plan: the moments are of the guidance branches {', '.join(map(str, branches))} at guidance scale "
            f"{guidance_scale}. Planning takes one branch, or cond and uncond with their guidance scale: run "
            "`flowblend calibrate forecast` with --guidance-scale."
        )
    return np.asarray([guidance_scale if branch == "cond" else 1.0 - guidance_scale for branch in branches])


def growth_of_errors(sampler: Sampler, growth: float) -> Array:
    """Growth of an error of each step's sample until the end, ``[N]``."""
    return 1.0 / np.sqrt(sampler.alphas**2 + sampler.sigmas**2 / growth)


def runs_of(large_steps: Sequence[int], num_steps: int) -> Iterator[tuple[tuple[int, ...], range]]:
    """The forecast steps between large ones: (the last two large steps before them, the steps themselves)."""
    for number, (last, following) in enumerate(itertools.pairwise([*large_steps, num_steps])):
        if following > last + 1:
            yield tuple(large_steps[max(0, number - 1) : number + 1]), range(last + 1, following)


class ErrorModel:
    """Expected errors of forecasts for one denoiser and sampler.

    Args:
        moments: of the denoiser.
        sampler: which the stack samples with.
        growth: squared, the most that an error of the first step grows by.
    """

    def __init__(self, moments: VelocityMoments, sampler: Sampler, growth: float) -> None:
        self.num_steps = sampler.num_steps
        self._guidance = guidance_weights(moments.branches, moments.guidance_scale)
        self._gains = sampler.weights * growth_of_errors(sampler, growth)
        # Rows of one branch after another; all that follows is linear algebra on this Gram matrix [B * N, B * N].
        self._gram = moments.gram([Place(name, one) for name in moments.branches for one in sampler.timesteps])

    def relative_errors(self, known: Sequence[int], steps: Sequence[int]) -> Array:
        """Error of each forecast from the known large steps, relative to the guided velocity's length."""
        errors = self._errors(known, steps)
        wanted = self._rows(steps)
        return np.sqrt(_squares(errors, self._gram) / _squares(wanted, self._gram))

    def run_errors(self, known: Sequence[int], steps: Sequence[int]) -> Array:
        """Expected squared error of the final latents when the first 1, 2, ... of these steps are forecast in a row.

        Args:
            known: the last two large steps before them, or the only one.
            steps: in a row, ``[M]``.
        """
        weighted = self._gains[list(steps), None] * self._errors(known, steps)
        return _squares(np.cumsum(weighted, axis=0), self._gram)

    def total(self, large_steps: Sequence[int]) -> float:
        """Expected squared error of the final latents for a placement; the first step must be a large one."""
        runs = runs_of(large_steps, self.num_steps)
        return float(sum(self.run_errors(known, steps)[-1] for known, steps in runs))

    def costs(self) -> Array:
        """Expected errors ``[N, N, N + 1]`` of runs between large steps ``k`` and ``m``, with ``j`` the one before.

        ``j = k = 0`` stands for the first large step alone. What cannot be is infinite.
        """
        number = self.num_steps
        found = np.full((number, number, number + 1), np.inf)
        for k in range(number):
            for j in range(k) if k else (0,):
                found[j, k, k + 1] = 0.0
                if k + 1 < number:
                    known = (0,) if k == 0 else (j, k)
                    found[j, k, k + 2 :] = self.run_errors(known, range(k + 1, number))
        return found

    def _errors(self, known: Sequence[int], steps: Sequence[int]) -> Array:
        """Forecast minus velocity, after guidance, as coefficients of every step's velocities: ``[M, B * N]``."""
        number, num_branches = self.num_steps, len(self._guidance)
        given = [branch * number + step for branch in range(num_branches) for step in known]
        wanted = self._rows(steps)
        between = self._gram[np.ix_(given, given)]
        towards = self._gram[given] @ wanted.T
        errors = -wanted
        errors[:, given] += np.linalg.solve(between + RIDGE * np.diag(np.diag(between)), towards).T
        return errors

    def _rows(self, steps: Sequence[int]) -> Array:
        """The guided velocities of these steps as coefficients of every step's velocities: ``[M, B * N]``."""
        rows = np.zeros((len(steps), len(self._guidance) * self.num_steps))
        for branch, weight in enumerate(self._guidance):
            rows[np.arange(len(steps)), branch * self.num_steps + np.asarray(steps)] = weight
        return rows


def solver_error(moments: VelocityMoments, sampler: Sampler, wanted: Sampler, growth: float) -> float:
    """Expected squared distance of two samplers' results, each with the large denoiser at every step."""
    guidance = guidance_weights(moments.branches, moments.guidance_scale)
    places = [Place(name, one) for name in moments.branches for one in (*sampler.timesteps, *wanted.timesteps)]
    own, other = (one.weights * growth_of_errors(one, growth) for one in (sampler, wanted))
    weights = np.concatenate([own, -other])
    difference = np.concatenate([weight * weights for weight in guidance])
    return max(0.0, float(difference @ moments.gram(places) @ difference))


def _squares(rows: Array, gram: Array) -> Array:
    return np.clip(np.einsum("is,st,it->i", rows, gram, rows), 0.0, None)
