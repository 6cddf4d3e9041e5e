"""Polynomials fitted by ``flowblend calibrate teacache``: their file, and those that come with this package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flowblend_plugins.files.measurement import MeasurementFile, config_facts
from flowblend_plugins.types import Denoiser, JsonObject, JsonView, KeywordsView

from .published import Estimate
from .rule import Polynomial

SHIPPED = Path(__file__).parent / "fits"


@dataclass(frozen=True)
class Fit:
    """One polynomial fitted to a denoiser's signal.

    Attributes:
        denoiser: class and config of the denoiser it was fitted for.
        signal: name of the signal.
        estimate: the polynomial on the changes seen, and the thresholds that reuse a third and half of the calls in
            generations of the first number of steps.
        r_squared: fraction of the variance of the output's change that it explains.
        num_points: pairs of changes it was fitted to.
        num_inference_steps: of the generations they come from, the main number first.
    """

    denoiser: KeywordsView
    signal: str
    estimate: Estimate
    r_squared: float
    num_points: int
    num_inference_steps: tuple[int, ...]

    @property
    def degree(self) -> int:
        return len(self.estimate.polynomial.coefficients) - 1

    def is_for(self, denoiser: Denoiser) -> bool:
        """Whether a denoiser has the class and, as far as the file knows, the config it was fitted for."""
        now = describe_denoiser(denoiser)
        return all(now.get(key) == value for key, value in self.denoiser.items())

    def to_dict(self) -> JsonObject:
        low, high = self.estimate.polynomial.domain
        return {
            "denoiser": dict(self.denoiser),
            "signal": self.signal,
            "degree": self.degree,
            "coefficients": list(self.estimate.polynomial.coefficients),
            "domain": [low, high],
            "thresholds": {"slow": self.estimate.slow, "fast": self.estimate.fast},
            "r_squared": self.r_squared,
            "num_points": self.num_points,
            "num_inference_steps": list(self.num_inference_steps),
        }

    @classmethod
    def from_dict(cls, data: JsonView) -> Fit:
        coefficients = tuple(float(c) for c in data["coefficients"])
        low, high = (float(bound) for bound in data["domain"])
        slow, fast = (float(data["thresholds"][speed]) for speed in ("slow", "fast"))
        if not coefficients or not all(math.isfinite(c) for c in (*coefficients, slow, fast)) or not low <= high:
            raise ValueError("coefficients and thresholds must be finite, and the domain two increasing numbers")
        estimate = Estimate(Polynomial(coefficients, (low, high)), slow, fast)
        return cls(
            denoiser=dict(data["denoiser"]),
            signal=str(data["signal"]),
            estimate=estimate,
            r_squared=float(data["r_squared"]),
            num_points=int(data["num_points"]),
            num_inference_steps=tuple(int(count) for count in data["num_inference_steps"]),
        )


def describe_denoiser(denoiser: Denoiser) -> JsonObject:
    """Class and config of a denoiser, as JSON has them."""
    return {"class": type(denoiser).__name__} | config_facts(denoiser)


def fits_to_json(fits: Sequence[Fit], **about: object) -> JsonObject:
    return _FILE.envelope({**about, "fits": [fit.to_dict() for fit in fits]})


def read_fits(path: str | Path) -> tuple[Fit, ...]:
    """Read the fits in a file. Raises ``AdapterError`` saying what is wrong with it."""
    return _FILE.read(path, "coefficients")


_FILE = MeasurementFile(
    kind="teacache",
    holds="fits of TeaCache",
    command="teacache",
    parse=lambda data: tuple(Fit.from_dict(entry) for entry in data["fits"]),
)


@cache
def shipped_fits() -> tuple[Fit, ...]:
    """Fits that come with this package, for the embedded pair."""
    return tuple(fit for path in sorted(SHIPPED.glob("*.json")) for fit in read_fits(path))
