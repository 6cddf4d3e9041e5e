"""MagCache (Ma et al., 2025, arXiv 2506.09045): how much the residual shrinks from step to step is known beforehand.

The implementation is diffusers' (``diffusers.hooks.mag_cache``), which counts its calls to know the step. Under a
router a denoiser sees only its own steps, so the count is set to the true step before every call; otherwise it would
read the ratios of another step (huggingface/diffusers issue 14025).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flowblend_plugins import AdapterTraits, AttachTarget, Family
from flowblend_plugins.types import Denoiser, Foreign

from .mag_ratios import MagRatios
from .native_cache import BeforeCall, NativeCache, transformer_blocks
from .own_hooks import hooks_named

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flowblend_plugins import StepContext


@dataclass(frozen=True, kw_only=True)
class MagCache(NativeCache):
    """Reuse features by measured magnitudes (MagCache).

    diffusers' MagCache on each denoiser, with that denoiser's own ratios.

    Args:
        ratios: file that ``flowblend calibrate mag-cache`` wrote for this pair; ``"reference"`` for the embedded one.
        threshold: accumulated error up to which the residual of the blocks is reused.
        max_skip_steps: steps that may be reused in a row.
        retention_fraction: fraction of the generation's steps, from its first, that are always computed.
        denoisers: letters of the denoisers it is put on; ``None`` for all of them.
        warmup_steps: steps that are always computed after a denoiser enters.
    """

    ratios: str | None = None
    threshold: float = 0.06
    max_skip_steps: int = 3
    retention_fraction: float = 0.2

    observes_all_it_skips: ClassVar[bool] = True
    name: ClassVar[str] = "mag_cache"
    page: ClassVar[str | None] = "docs/caches/mag_cache.md"
    min_blocks: ClassVar[int] = 1
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        min_useful_steps=2,
        wraps="blocks",
        denoiser_kinds=frozenset({"transformer"}),
    )

    suggested: ClassVar[tuple[str, ...]] = (
        "mag_cache(ratios='reference', threshold=0.06)",
        "mag_cache(ratios='reference', threshold=0.24, max_skip_steps=5)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratios:
            raise ValueError(
                f"ratios={self.ratios!r}: it needs the magnitude ratios of this pair. Run `flowblend calibrate "
                'mag-cache` and give the file it writes, as ratios="mag_ratios.json"'
            )
        if not 0.0 <= self.threshold < float("inf"):
            raise ValueError(f"threshold={self.threshold}: expected a number from 0 up")
        if self.max_skip_steps < 1:
            raise ValueError(f"max_skip_steps={self.max_skip_steps}: expected at least 1")
        if not 0.0 <= self.retention_fraction <= 1.0:
            raise ValueError(f"retention_fraction={self.retention_fraction}: expected a fraction from 0 to 1")

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[object]:
        MagRatios.read(str(self.ratios))  # a file that cannot be read is told before anything is put on
        with super().attach(target) as stages:
            yield stages

    def observed_modules(self, denoiser: Denoiser) -> Sequence[nn.Module]:
        return transformer_blocks(denoiser)

    def config_for(self, denoiser: Denoiser, letter: str, target: AttachTarget) -> object:
        from diffusers import MagCacheConfig

        ratios = MagRatios.read(str(self.ratios)).of(letter, denoiser)
        return MagCacheConfig(
            threshold=self.threshold,
            max_skip_steps=self.max_skip_steps,
            retention_ratio=self.retention_fraction,
            num_inference_steps=len(ratios),
            mag_ratios=list(ratios),
        )

    def steered(self, denoiser: Denoiser, config: Foreign) -> BeforeCall:
        calibrated = config.mag_ratios
        states = mag_states(denoiser)

        def before_call(step: StepContext, is_warming_up: bool) -> None:
            if step.num_inference_steps != config.num_inference_steps:
                config.num_inference_steps = step.num_inference_steps
                config.mag_ratios = self._stretched(calibrated, step)
            config.threshold = -1.0 if is_warming_up else self.threshold  # no error is below -1
            states.get_state().step_index = step.step_index

        return before_call

    def _stretched(self, calibrated: torch.Tensor, step: StepContext) -> torch.Tensor:
        """The ratios for another number of steps, as diffusers stretches them: at each step the nearest one's."""
        from diffusers.hooks.mag_cache import nearest_interp

        if step.num_inference_steps == len(calibrated):
            return calibrated
        warnings.warn(
            f"'mag_cache' on denoiser {step.denoiser}: {self.ratios} was calibrated for {len(calibrated)} steps and "
            f"this generation has {step.num_inference_steps}, so each step takes the nearest one's ratio. Calibrate "
            f"with --steps {step.num_inference_steps} for ratios of its own.",
            stacklevel=2,
        )
        return nearest_interp(calibrated, step.num_inference_steps)


def mag_states(denoiser: Denoiser) -> Foreign:
    """diffusers' state manager of the MagCache that is on a denoiser: ``get_state()`` is that of the open context."""
    from diffusers.hooks.mag_cache import _MAG_CACHE_LEADER_BLOCK_HOOK

    return hooks_named(denoiser, _MAG_CACHE_LEADER_BLOCK_HOOK)[0].state_manager
