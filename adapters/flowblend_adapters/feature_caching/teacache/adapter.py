"""TeaCache (Liu et al., 2024, arXiv 2411.19108) on Wan and LTX: the residual of the block stack is reused while the
estimated change of the output stays under a threshold.

State belongs to one denoiser and one guidance branch, and the step is the sampler's: no call is counted, so that steps
answered by another denoiser shift nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family
from flowblend_plugins.types import Pipeline

from ..chosen_denoisers import caches_of_one_blend, check_stage_options, choose_denoisers
from ..ranks import splitting_obstacles
from .estimates import check_coefficients, estimate_for, signal_for, threshold_for
from .published import MODULATED_INPUT, PROJECTED_TIME, TIME
from .rule import SkipRule

if TYPE_CHECKING:  # listing plugins should not pay for torch
    from flowblend_plugins import Outcome, StepContext

    from .state import TeaCacheState

# First and last steps that are always computed, by signal, as published. Counted there in calls, two a step.
FORCED_STEPS = {PROJECTED_TIME: (5, 0), TIME: (1, 1), MODULATED_INPUT: (1, 1)}


@dataclass(frozen=True, kw_only=True)
class TeaCache(Adapter):
    """Reuse the block stack's residual (TeaCache).

    Reuse the residual of the block stack while little changes.

    Args:
        threshold: estimated relative change of the output up to which the last residual is reused; 0 never reuses,
            ``None`` and ``"fast"`` are the slow and fast ones published (or fitted) for the size of each denoiser.
        retention: on Wan, watch the projected time embedding and compute the first five steps (as published with
            "retention steps"); off, watch the plain time embedding and compute the first and the last step.
        coefficients: a file from ``flowblend calibrate teacache``, or a published model by name; ``None`` finds those
            for the size of each denoiser.
        warmup_steps: steps that are computed whenever a denoiser enters.
        denoisers: letters of the denoisers to put it on, such as ``"L"``; ``None`` for all.
    """

    threshold: float | Literal["fast"] | None = None
    retention: bool = True
    coefficients: str | None = None
    warmup_steps: int = 0
    denoisers: str | None = None

    name: ClassVar[str] = "teacache"
    page: ClassVar[str | None] = "docs/caches/teacache.md"
    suggested: ClassVar[tuple[str, ...]] = ("teacache", "teacache(threshold='fast')")
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        min_useful_steps=3,
        wraps="blocks",
        denoiser_kinds=frozenset({"transformer"}),
        denoiser_classes=frozenset({"WanTransformer3DModel", "LTXVideoTransformer3DModel"}),
    )

    def __post_init__(self) -> None:
        if self.threshold not in (None, "fast") and not 0.0 <= self.threshold < math.inf:
            raise ValueError(f"threshold={self.threshold}: expected a number from 0 up, or None for the published one")
        check_stage_options(self.denoisers, self.warmup_steps)
        if self.coefficients is not None:
            check_coefficients(self.coefficients)

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        yield from splitting_obstacles(getattr(pipe, "transformer", None) or pipe)

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[TeaCacheState]:
        from .state import TeaCacheState

        rules = self._rules(target)
        state = TeaCacheState(target.trace)
        with contextlib.ExitStack() as undo:
            on = {letter: target.denoisers[letter] for letter in rules}
            undo.enter_context(caches_of_one_blend(self.name, on, target))
            for letter, rule in rules.items():
                undo.enter_context(state.watching(target.denoisers[letter], *rule))
            yield state

    def plan(self, target: AttachTarget, steps: Sequence[StepContext]) -> list[Outcome] | None:
        """Plan the steps of Wan's denoisers, whose signals depend on the timestep alone."""
        from .planning import plan_steps

        rules = self._rules(target)
        if any(signal == MODULATED_INPUT for signal, _ in rules.values()):
            return None
        return plan_steps(target.denoisers, rules, steps, target.reentry)

    def _rules(self, target: AttachTarget) -> dict[str, tuple[str, SkipRule]]:
        """Signal and rule by letter, each denoiser once."""
        rules: dict[str, tuple[str, SkipRule]] = {}
        chosen = choose_denoisers(self.name, self.denoisers, target)
        for letter, denoiser in chosen.items():
            if any(denoiser is chosen[other] for other in rules):
                continue
            signal = signal_for(denoiser, self.retention)
            estimate = estimate_for(letter, denoiser, signal, self.coefficients)
            threshold = threshold_for(letter, estimate, self.threshold)
            rules[letter] = signal, SkipRule(estimate.polynomial, threshold, *FORCED_STEPS[signal], self.warmup_steps)
        return rules
