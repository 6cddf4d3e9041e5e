"""TaylorSeer (Liu et al., 2025, arXiv 2503.06923): what attention gives at a step is forecast from earlier steps.

Each cached module keeps finite differences of its output over its computed steps, and between those a Taylor series
takes its place. The implementation is that of diffusers (``diffusers.hooks.taylorseer_cache``).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from flowblend_plugins import AdapterTraits, AttachTarget, Family, StackError
from flowblend_plugins.types import Denoiser, Foreign

from .native_cache import BeforeCall, NativeCache, transformer_blocks
from .own_hooks import hooks_named

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins import StepContext

# diffusers' own default is matched in full against names like "blocks.0.attn1" and ends in "attn", so it fits none.
ATTENTION_OF_BLOCKS = r"(?:\w+_)?blocks\.\d+\.attn\d*"


@dataclass(frozen=True, kw_only=True)
class TaylorSeer(NativeCache):
    """Predict features by Taylor series (TaylorSeer).

    diffusers' TaylorSeer on each denoiser.

    Args:
        cache_interval: one step in so many is computed once the warm-up is over; 1 computes all of them.
        max_order: highest derivative of the series, at least 1. The memory of one output of every cached module is
            needed for each order and guidance branch, and once more.
        identifiers: regular expression for the full names of the modules to forecast; ``None`` for the attention of
            every transformer block.
        is_lite: forecast the output projection alone and leave out all blocks: the least memory and the most speed.
        factors_dtype: in which the differences are kept.
        denoisers: letters of the denoisers it is put on; ``None`` for all of them.
        warmup_steps: steps that are always computed after a denoiser enters; a series of order n needs n + 1.
    """

    warmup_steps: int = 3
    cache_interval: int = 5
    max_order: int = 1
    identifiers: str | None = None
    is_lite: bool = False
    factors_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    name: ClassVar[str] = "taylorseer"
    page: ClassVar[str | None] = "docs/caches/taylorseer.md"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        min_useful_steps=3,
        wraps="attention",
        denoiser_kinds=frozenset({"transformer"}),
    )
    suggested: ClassVar[tuple[str, ...]] = (
        "taylorseer(cache_interval=2)",
        "taylorseer(is_lite=True, cache_interval=3)",
    )
    skipped_outcome: ClassVar[str] = "predict"
    observes_all_it_skips: ClassVar[bool] = True
    needs_registered_blocks: ClassVar[bool] = False
    min_blocks: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_interval < 1:
            raise ValueError(f"cache_interval={self.cache_interval}: expected at least 1")
        if self.max_order < 1:
            raise ValueError(f"max_order={self.max_order}: expected at least 1")
        if self.warmup_steps < self.max_order + 1:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}: a series of max_order={self.max_order} needs "
                f"{self.max_order + 1} computed steps or more"
            )
        if self.identifiers is not None:
            if self.is_lite:
                raise ValueError("is_lite=True chooses the modules itself: leave out identifiers")
            try:
                re.compile(self.identifiers)
            except re.error as error:
                raise ValueError(f"identifiers={self.identifiers!r} is no regular expression: {error}") from error

    def config_for(self, denoiser: Denoiser, letter: str, target: AttachTarget) -> object:
        import torch
        from diffusers import TaylorSeerCacheConfig

        if not self.observed_modules(denoiser):
            asked = "is_lite=True" if self.is_lite else f"identifiers={self._pattern!r}"
            raise StackError(
                f"{self.name!r} on denoiser {letter}: {asked} fits no module of {type(denoiser).__name__}, so nothing "
                "would be cached. It must fit full names; those in the first block are "
                f"{_names_in_first_block(denoiser)}."
            )
        return TaylorSeerCacheConfig(
            cache_interval=self.cache_interval,
            disable_cache_before_step=self.warmup_steps,
            max_order=self.max_order,
            taylor_factors_dtype=getattr(torch, self.factors_dtype),
            cache_identifiers=None if self.is_lite else [self._pattern],
            use_lite_mode=self.is_lite,
        )

    def observed_modules(self, denoiser: Denoiser) -> Sequence[nn.Module]:
        if self.is_lite:
            projection = getattr(denoiser, "proj_out", None)
            return [] if projection is None else [*transformer_blocks(denoiser), projection]
        return [module for name, module in denoiser.named_modules() if re.fullmatch(self._pattern, name)]

    def steered(self, denoiser: Denoiser, config: Foreign) -> BeforeCall:
        from diffusers.hooks.taylorseer_cache import _TAYLORSEER_CACHE_HOOK

        hooks = hooks_named(denoiser, _TAYLORSEER_CACHE_HOOK)

        def before_call(step: StepContext, is_warming_up: bool) -> None:
            # After a reset its own count says the same; a state that was kept (reentry="keep") counts on.
            computed_before = sys.maxsize if is_warming_up else self.warmup_steps
            for hook in hooks:
                hook.disable_cache_before_step = computed_before

        return before_call

    @property
    def _pattern(self) -> str:
        return self.identifiers or ATTENTION_OF_BLOCKS


def _names_in_first_block(denoiser: Denoiser) -> str:
    """Names of the modules to choose from, as every block has them."""
    return ", ".join(name for name, _ in denoiser.named_modules() if re.fullmatch(r"(?:\w+_)?blocks\.0\.\w+", name))
