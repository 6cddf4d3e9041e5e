"""The velocity divergence of a pair over its steps: mean and spread over prompts, and the boundaries it suggests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import ScheduleError
from ..files.measurement import MeasurementFile
from ..types import JsonObject, JsonView
from .divergence import GUIDED, Divergence
from .setting import CalibrationSetting


class Spread(NamedTuple):
    """A mean over prompts and the standard deviation of one prompt; 0 where there was only one."""

    mean: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class BranchCurve:
    """The divergence of one guidance branch, a value for each step.

    Attributes:
        cosine: cosine similarity of the two velocities.
        relative_l2: norm of their difference over the norm of the large one's.
    """

    cosine: tuple[Spread, ...]
    relative_l2: tuple[Spread, ...]


@dataclass(frozen=True, kw_only=True)
class DivergenceCurve:
    """Velocity divergence over the steps, as ``flowblend calibrate divergence`` measures it.

    Attributes:
        setting: the pair, the sampler, the prompts.
        sigmas: noise level of each step; ``None`` where the sampler has none.
        branches: by name: ``cond``, ``uncond``, and ``guided`` after guidance; where guidance is off ``cond`` alone.
    """

    setting: CalibrationSetting
    sigmas: tuple[float | None, ...]
    branches: Mapping[str, BranchCurve]

    @classmethod
    def of(cls, runs: Sequence[Sequence[Divergence]], setting: CalibrationSetting) -> DivergenceCurve:
        """Make the curve from one large-only generation of each prompt."""
        by_place: dict[str, dict[int, list[Divergence]]] = {}
        for run in runs:
            for found in run:
                by_place.setdefault(found.branch or "unnamed", {}).setdefault(found.step_index, []).append(found)
        first = {found.step_index: found.sigma for found in runs[0]}
        branches = {
            branch: BranchCurve(
                cosine=tuple(_spread([one.cosine for one in steps[index]]) for index in sorted(steps)),
                relative_l2=tuple(_spread([one.relative_l2 for one in steps[index]]) for index in sorted(steps)),
            )
            for branch, steps in by_place.items()
        }
        return cls(setting=setting, sigmas=tuple(first[index] for index in sorted(first)), branches=branches)

    @property
    def deciding_branch(self) -> str:
        """The branch that the sampler acts on: after guidance where there is any."""
        return next((name for name in (GUIDED, "cond") if name in self.branches), next(iter(self.branches)))

    def to_json(self) -> JsonObject:
        content = {
            "setting": self.setting.to_json(),
            "sigmas": [sigma if sigma is not None and math.isfinite(sigma) else None for sigma in self.sigmas],
            "branches": {
                name: {
                    quantity: {
                        "mean": [one.mean for one in getattr(curve, quantity)],
                        "deviation": [one.deviation for one in getattr(curve, quantity)],
                    }
                    for quantity in ("cosine", "relative_l2")
                }
                for name, curve in self.branches.items()
            },
        }
        return _FILE.envelope(content)

    @classmethod
    def load(cls, path: str | Path) -> DivergenceCurve:
        """Read the file that ``flowblend calibrate divergence`` wrote.

        Raises:
            ScheduleError: it is not there, or is something else.
        """
        return _FILE.read(path)

    @classmethod
    def from_json(cls, entry: JsonView) -> DivergenceCurve:
        """Read the content of such a file. Raises ``ValueError``, ``KeyError`` or ``TypeError`` where it is damaged."""
        return cls(
            setting=CalibrationSetting.from_json(entry["setting"]),
            sigmas=tuple(entry["sigmas"]),
            branches={
                name: BranchCurve(cosine=_read(one["cosine"]), relative_l2=_read(one["relative_l2"]))
                for name, one in entry["branches"].items()
            },
        )


_FILE = MeasurementFile(
    kind="velocity_divergence",
    holds="divergence",
    command="divergence",
    parse=DivergenceCurve.from_json,
    error=ScheduleError,
)


def boundaries_of_divergence(values: Sequence[float]) -> tuple[int, int]:
    """Early and late steps: where a divergence stands above half its height, before and after its lowest step.

    It is read from its peak in the first half on: in nearly pure noise there is little to disagree about, so it may be
    low at first. The lowest step is that behind the peak, the height that of the highest step over the lowest; so there
    is no threshold to choose, and a late side that does not rise to half the height gives a stage of no steps.

    >>> boundaries_of_divergence([1.0, 0.8, 0.4, 0.2, 0.2, 0.3, 0.7])
    (2, 1)
    >>> boundaries_of_divergence([0.1, 0.9, 0.7, 0.4, 0.2, 0.2])
    (3, 0)
    """
    num, (peak, bottom, level) = len(values), half_height(values)
    early = max((index + 1 for index in range(peak, bottom) if values[index] > level), default=0)
    late = max((num - index for index in range(bottom, num) if values[index] > level), default=0)
    return early, late


class HalfHeight(NamedTuple):
    """The highest step of the first half, the lowest behind it, and the divergence half-way between their ends."""

    peak: int
    bottom: int
    level: float


def half_height(values: Sequence[float]) -> HalfHeight:
    """The level that :func:`boundaries_of_divergence` reads from, and the two steps that it lies between."""
    peak = max(range((len(values) + 1) // 2), key=values.__getitem__)
    bottom = min(range(peak, len(values)), key=values.__getitem__)
    return HalfHeight(peak, bottom, values[bottom] + 0.5 * (max(values[peak:]) - values[bottom]))


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def _read(entry: Mapping[str, Sequence[float]]) -> tuple[Spread, ...]:
    return tuple(Spread(float(m), float(d)) for m, d in zip(entry["mean"], entry["deviation"], strict=True))
