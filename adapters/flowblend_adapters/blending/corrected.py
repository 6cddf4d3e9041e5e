"""Corrected blending: the small denoiser's velocity plus what the large one last said beyond it.

``v(x, t) = v_small(x, t) + strength (t / t_k)^damping r``, with ``r = v_large - v_small`` on the latents of the last
large step ``k``, for each guidance branch. Guidance is linear, so this is also the correction after guidance, where
its scale is the same at both steps. The method is this package's own; docs/blending.md has what was measured.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family, hookimpl
from flowblend_plugins.types import Output

from .residual import SMALL, Known, Residuals, noise_level, velocity_of, with_velocity

if TYPE_CHECKING:
    import torch

    from flowblend_plugins import DenoiserCall, StepContext


@dataclass(frozen=True, kw_only=True)
class Corrected(Adapter):
    """Correct small steps by the last large residual.

    Correct the small denoiser's steps by the residual of the last large step.

    Args:
        strength: of the correction. 0 is plain blending, bit for bit.
        damping: how fast it fades with the noise level, as the exponent of ``sigma / sigma_k``; 0 keeps it as it is.
        extrapolate: fraction of the residual's change from the last but one large step to the last that is
            continued, by noise level; 0 keeps the last residual. Costs one more small forward for each branch.
    """

    strength: float = 1.0
    damping: float = 1.0
    extrapolate: float = 0.0

    name: ClassVar[str] = "corrected"
    page: ClassVar[str | None] = "docs/blending.md"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.BLENDING,
        needs_in_order=("L", "S"),
        compares_denoisers=True,
        wraps="answer",
    )
    suggested: ClassVar[tuple[str, ...]] = ("corrected", "corrected(damping=0.5)")

    def __post_init__(self) -> None:
        for name in ("strength", "damping", "extrapolate"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}={value}: expected a number from 0 up")

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[_Correction | None]:
        # With nothing to add the small denoiser is left alone: no further forwards, and no answers but its own.
        yield _Correction(self) if self.strength else None


class _Correction:
    def __init__(self, options: Corrected) -> None:
        self._options = options
        self._residuals = Residuals(num_kept=2 if options.extrapolate else 1)

    @hookimpl
    def flowblend_answer(self, call: DenoiserCall) -> Output:
        step = call.step
        self._residuals.begin(step)
        if step.denoiser != SMALL:
            output = call.run()
            self._residuals.keep_large(call, output)
            return output
        known = self._residuals.known(call)
        if not known:  # no large step has been: there is nothing to correct by
            return None
        output = call.run()
        call.mark_predicted()
        return with_velocity(output, velocity_of(output) + self._correction(step, known))

    def _correction(self, step: StepContext, known: list[Known]) -> torch.Tensor:
        options, last = self._options, known[-1]
        residual, level, last_level = last.residual, noise_level(step), noise_level(last.step)
        if len(known) > 1:
            before = known[-2]
            passed = (level - last_level) / (last_level - noise_level(before.step))
            residual = residual + options.extrapolate * passed * (last.residual - before.residual)
        return faded(options.strength, options.damping, level, last_level) * residual


def faded(strength: float, damping: float, level: float, last_level: float) -> float:
    """The weight of a residual that was found at ``last_level`` of noise, at a lower ``level``."""
    return strength * (level / last_level) ** damping
