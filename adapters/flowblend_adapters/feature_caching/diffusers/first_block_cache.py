"""FirstBlockCache: if the first block changes the tokens almost as it did before, the other blocks are not run.

The rule is ParaAttention's, in the implementation of diffusers (``diffusers.hooks.first_block_cache``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flowblend_plugins import AdapterTraits, AttachTarget, Family
from flowblend_plugins.types import Denoiser, Foreign

from ..ranks import first_blocks_agree
from .native_cache import BeforeCall, NativeCache, StageEntries, transformer_blocks
from .own_hooks import hooks_named

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins import StepContext


@dataclass(frozen=True, kw_only=True)
class FirstBlockCache(NativeCache):
    """Reuse all blocks while the first changes little.

    diffusers' FirstBlockCache on each denoiser.

    Args:
        threshold: relative change of the first block's residual, ``mean|r - r_before| / mean|r_before|``, up to which
            the residual of the other blocks is reused. 0 reuses only where nothing has changed.
        denoisers: letters of the denoisers it is put on; ``None`` for all of them.
        warmup_steps: steps that are always computed after a denoiser enters.
    """

    threshold: float = 0.05

    observes_all_it_skips: ClassVar[bool] = True
    name: ClassVar[str] = "first_block_cache"
    page: ClassVar[str | None] = "docs/caches/first_block_cache.md"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        min_useful_steps=2,
        wraps="blocks",
        denoiser_kinds=frozenset({"transformer"}),
    )

    suggested: ClassVar[tuple[str, ...]] = ("first_block_cache(threshold=0.1)", "first_block_cache(threshold=0.2)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.threshold < float("inf"):
            raise ValueError(f"threshold={self.threshold}: expected a number from 0 up")

    def observed_modules(self, denoiser: Denoiser) -> Sequence[nn.Module]:
        return transformer_blocks(denoiser)[1:]

    @contextlib.contextmanager
    def _on(self, denoiser: Denoiser, letter: str, target: AttachTarget, stages: StageEntries) -> Iterator[None]:
        with super()._on(denoiser, letter, target, stages), first_blocks_agree(denoiser):
            yield

    def config_for(self, denoiser: Denoiser, letter: str, target: AttachTarget) -> object:
        from diffusers import FirstBlockCacheConfig

        return FirstBlockCacheConfig(threshold=self.threshold)

    def steered(self, denoiser: Denoiser, config: Foreign) -> BeforeCall:
        from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

        (leader,) = hooks_named(denoiser, _FBC_LEADER_BLOCK_HOOK)

        def before_call(step: StepContext, is_warming_up: bool) -> None:
            leader.threshold = -1.0 if is_warming_up else self.threshold  # no change is below -1

        return before_call
