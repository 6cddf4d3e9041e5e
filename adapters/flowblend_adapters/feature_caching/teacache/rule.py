"""Rule by which TeaCache reuses (Liu et al., 2024, arXiv 2411.19108): mathematics without a model or device.

The relative change of a cheap signal, put through a fitted polynomial, estimates how much the output changes. Estimates
add up over the steps that were not computed; once they reach the threshold, the step is computed and the sum is zero.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Polynomial:
    """Relative change of the output estimated from that of a signal, and the changes for which the estimate holds.

    Attributes:
        coefficients: the highest power first.
        domain: smallest and largest change of the signal that the fit can speak of. Beyond it a polynomial of degree 4
            says anything, below zero too.
    """

    coefficients: tuple[float, ...]
    domain: tuple[float, float] = (0.0, math.inf)

    @classmethod
    def on_its_positive_domain(cls, *coefficients: float) -> Polynomial:
        """Limit the polynomial to the first interval on which it is positive, for fits published without a domain."""
        import numpy as np

        roots = sorted(float(root.real) for root in np.roots(coefficients) if abs(root.imag) < 1e-12 and root.real > 0)
        bounds = [0.0, *roots, math.inf]
        for low, high in itertools.pairwise(bounds):
            inside = low + 1.0 if high == math.inf else (low + high) / 2
            if float(np.polyval(coefficients, inside)) > 0:
                return cls(coefficients, (low, high))
        raise ValueError(f"the polynomial {coefficients} is positive for no change of the signal")

    def __call__(self, change: float) -> float | None:
        """The estimate, never negative; ``None`` where the polynomial has nothing to say."""
        low, high = self.domain
        if not low <= change <= high:  # false for nan, too
            return None
        value = 0.0
        for coefficient in self.coefficients:
            value = value * change + coefficient
        return value if value >= 0 else None


@dataclass(frozen=True)
class SkipRule:
    """Tell for each step whether it is computed.

    Attributes:
        polynomial: estimates the change of the output.
        threshold: estimated change up to which the last residual is reused; at 0 it never is.
        num_first: steps at the beginning of a generation that are always computed.
        num_last: likewise at its end.
        warmup_steps: likewise after a denoiser enters.
    """

    polynomial: Polynomial
    threshold: float
    num_first: int = 1
    num_last: int = 0
    warmup_steps: int = 0

    def is_forced(self, step_index: int, num_inference_steps: int, first_index: int, entered_index: int) -> bool:
        """Whether a step is computed whatever the signal says.

        Args:
            step_index, num_inference_steps: of the step.
            first_index: first step of this generation (above 0 in video-to-video).
            entered_index: step at which the denoiser entered.
        """
        return (
            step_index - first_index < self.num_first
            or step_index >= num_inference_steps - self.num_last
            or step_index - entered_index < self.warmup_steps
        )

    def reuses(self, accumulator: Accumulator, change: float) -> bool:
        """Whether a step that is not forced reuses; the accumulator then holds its estimate, too."""
        estimate = self.polynomial(change)
        if estimate is None:
            return False
        accumulator.distance += estimate
        return accumulator.distance < self.threshold


@dataclass
class Accumulator:
    """The estimated change of the output since the last computed step."""

    distance: float = field(default=0.0)
