"""Least-squares combination of a denoiser's past velocities, with weights from calibration.

Inner products ``M`` of the velocities at every pair of timesteps and guidance branches, the mean over a few
generations, are all that least squares needs: the weights of known velocities ``K`` whose sum errs least as a guess of
another one ``w`` solve ``M[K, K] a = M[K, w]``, the normal equations. It is the Wiener-Kolmogorov predictor, known as
kriging where the points are places. A velocity between two calibrated timesteps stands for the line between the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowblend_plugins.files.measurement import MeasurementFile, denoiser_differences
from flowblend_plugins.types import Denoiser, JsonObject, JsonView, Pipeline

from .own_sampling import OwnSampling

Array = NDArray[np.float64]

RIDGE = 1e-5
"""Of each velocity's own power: neighbours are nearly the same, and weights must not live on their difference."""
BATCHED_BRANCHES = ("uncond", "cond")
"""How diffusers' pipelines order guidance branches that they ask for in one batch."""


class Place(NamedTuple):
    """Position of a velocity: its guidance branch and the sampler's timestep."""

    branch: str | None
    timestep: float


def guides_in_one_batch(pipe: Pipeline) -> bool:
    """Whether a pipeline that does not name its branches puts both in one call; asked while it generates."""
    return getattr(pipe, "unet", None) is not None and bool(getattr(pipe, "do_classifier_free_guidance", False))


@dataclass(frozen=True, kw_only=True, eq=False)
class VelocityMoments:
    """Second moments (Gram matrix) of one denoiser's velocities.

    Attributes:
        class_name: of the denoiser.
        config: its diffusers config without private entries.
        guidance_scale: of the generations; ``None`` where the pipeline does not say.
        prompts: what was generated.
        branches: guidance branches, as the pipeline names them; ``None`` where it does not.
        timesteps: ``N`` of them, falling.
        moments: inner products per value ``[B * N, B * N]``, one branch after another.
        is_batched: the pipeline asks for both branches in one call, :data:`BATCHED_BRANCHES`.
        own_sampling: what the pipeline's own sampler gave, which planning needs; ``None`` where it was not run.
    """

    class_name: str
    config: JsonView
    guidance_scale: float | None
    prompts: tuple[str, ...]
    branches: tuple[str | None, ...]
    timesteps: tuple[float, ...]
    moments: Array
    is_batched: bool = False
    own_sampling: OwnSampling | None = None

    def weights(self, wanted: Place, known: Sequence[Place]) -> Array:
        """Weights of the known velocities whose sum is the least-squares guess of the wanted one.

        Beyond the calibrated timesteps the nearest one stands. Every branch must be one of :attr:`branches`.
        """
        gram = self.gram([*known, wanted])
        between, towards = gram[:-1, :-1], gram[:-1, -1]
        solved = np.linalg.solve(between + RIDGE * np.diag(np.diag(between)), towards)
        return np.asarray(solved, np.float64)

    def gram(self, places: Sequence[Place]) -> Array:
        """Inner products per value of the velocities at these places ``[P, P]``, on lines between calibrated ones."""
        rows = np.stack([self._row(place) for place in places])
        return rows @ self.moments @ rows.T

    def _row(self, place: Place) -> Array:
        """The place as shares of calibrated ones."""
        rising = np.asarray(self.timesteps[::-1])
        number = len(rising)
        row = np.zeros(len(self.branches) * number)
        start = self.branches.index(place.branch) * number
        timestep = float(np.clip(place.timestep, rising[0], rising[-1]))
        above = min(max(int(np.searchsorted(rising, timestep)), 1), number - 1)
        share = (timestep - rising[above - 1]) / (rising[above] - rising[above - 1])
        row[start + number - 1 - above] = share
        row[start + number - above] = 1.0 - share
        return row

    def differences(self, denoiser: Denoiser | None) -> list[str]:
        """Differences of the measured denoiser from this one, in words."""
        return denoiser_differences(self.class_name, self.config, denoiser)

    def to_json(self) -> JsonObject:
        """The JSON object that :meth:`read` reads; the moments as a lower triangle, to seven digits."""
        triangle = self.moments[np.tril_indices(len(self.moments))]
        own = {} if self.own_sampling is None else {"own_sampling": self.own_sampling.to_json()}
        return _FILE.envelope(
            {
                "denoiser": {"class": self.class_name, "config": dict(self.config)},
                "guidance_scale": self.guidance_scale,
                "prompts": list(self.prompts),
                "branches": list(self.branches),
                "is_batched": self.is_batched,
                "timesteps": list(self.timesteps),
                "moments": [float(f"{value:.7g}") for value in triangle],
                **own,
            }
        )

    @classmethod
    def read(cls, path: str | Path) -> VelocityMoments:
        """Read the moments from a JSON file, or by name (``"reference"``) from this package.

        Raises:
            AdapterError: it is not there, or holds none.
        """
        return _FILE.read(path, "moments")

    @classmethod
    def from_json(cls, data: JsonView) -> VelocityMoments:
        branches, timesteps = tuple(data["branches"]), tuple(float(one) for one in data["timesteps"])
        scale = data["guidance_scale"]
        return cls(
            class_name=str(data["denoiser"]["class"]),
            config=dict(data["denoiser"]["config"]),
            guidance_scale=None if scale is None else float(scale),
            prompts=tuple(data["prompts"]),
            branches=branches,
            timesteps=timesteps,
            is_batched=bool(data.get("is_batched", False)),
            moments=_read_moments(branches, timesteps, data["moments"]),
            own_sampling=OwnSampling.from_json(data["own_sampling"]) if "own_sampling" in data else None,
        )


_FILE = MeasurementFile(
    kind="forecast",
    holds="moments of velocities",
    command="forecast",
    parse=VelocityMoments.from_json,
    built_in=Path(__file__).parent / "fitted",
)


def _read_moments(branches: Sequence[str | None], timesteps: Sequence[float], triangle: Sequence[float]) -> Array:
    size = len(branches) * len(timesteps)
    if not branches or len(timesteps) < 2 or not all(a > b for a, b in itertools.pairwise(timesteps)):
        raise ValueError("it has no branches, or not two timesteps or more that fall")
    if len(triangle) != size * (size + 1) // 2:
        raise ValueError(f"it has {len(triangle)} moments, and {size} velocities have {size * (size + 1) // 2}")
    moments = np.zeros((size, size))
    moments[np.tril_indices(size)] = triangle
    if not np.isfinite(moments).all() or not (np.diag(moments) > 0.0).all():
        raise ValueError("a moment is no number, or a velocity's power is not above 0")
    return moments + np.tril(moments, -1).T
