"""Guided refresh: the small denoiser runs at every step, and its own change says when the large one is needed again.

``d = |v_small(x, t) - v_small(x_k, t_k)| / |v_small(x_k, t_k)|`` since the last large step ``k`` (l2 over the latents).
Up to the threshold the step is answered as in :mod:`.corrected`; beyond it by the large denoiser. A cache asks the
same of a signal of its own; here it is the velocity of a model that knows the task. The method is this package's own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family, hookimpl
from flowblend_plugins.types import Output

from .corrected import faded
from .residual import SMALL, Residuals, noise_level, velocity_of, with_velocity

if TYPE_CHECKING:
    import torch

    from flowblend_plugins import DenoiserCall


@dataclass(frozen=True, kw_only=True)
class GuidedRefresh(Adapter):
    """Call the large one when the small one changes.

    Call the large denoiser within the small one's steps whenever the small velocity has changed enough.

    Args:
        threshold: relative change of the small denoiser's velocity since the last large step up to which its corrected
            answer stands. 0 calls the large one at every step; ``inf`` never, which is ``corrected``.
        strength, damping: of the correction between, as in ``corrected``.
    """

    threshold: float
    strength: float = 1.0
    damping: float = 1.0

    name: ClassVar[str] = "guided_refresh"
    page: ClassVar[str | None] = "docs/blending.md"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.BLENDING,
        needs_in_order=("L", "S"),
        compares_denoisers=True,
        wraps="answer",
    )
    suggested: ClassVar[tuple[str, ...]] = ("guided_refresh(threshold=0.2)", "guided_refresh(threshold=0.4)")

    def __post_init__(self) -> None:
        if not self.threshold >= 0.0:
            raise ValueError(f"threshold={self.threshold}: expected a number from 0 up")
        for name in ("strength", "damping"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}={value}: expected a number from 0 up")

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[_Refresh]:
        yield _Refresh(self)


class _Refresh:
    def __init__(self, options: GuidedRefresh) -> None:
        self._options = options
        self._residuals = Residuals()
        self._large = "L"
        self._decided: tuple[int, int] | None = None
        self._is_refreshing = False

    @hookimpl
    def flowblend_answer(self, call: DenoiserCall) -> Output:
        options, step = self._options, call.step
        self._residuals.begin(step)
        if step.denoiser != SMALL:
            self._large = step.denoiser
            output = call.run()
            self._residuals.keep_large(call, output)
            return output
        known = self._residuals.known(call)
        if not known:
            return None
        last = known[-1]
        output = call.run()
        small = velocity_of(output)
        if self._is_due(call, small, last.small):
            answer = call.run(self._large)
            self._residuals.keep(step, velocity_of(answer), small)
            return answer
        if not options.strength:
            return output
        call.mark_predicted()
        weight = faded(options.strength, options.damping, noise_level(step), noise_level(last.step))
        return with_velocity(output, small + weight * last.residual)

    def _is_due(self, call: DenoiserCall, now: torch.Tensor, then: torch.Tensor) -> bool:
        """Decided by the first guidance branch of a step, for all: branches of one step belong together."""
        position = call.step.generation, call.step.step_index
        if self._decided != position:
            change = float((now - then).float().norm() / then.float().norm())
            self._decided, self._is_refreshing = position, change > self._options.threshold
        return self._is_refreshing
