"""Pyramid Attention Broadcast (Zhao et al., 2024, arXiv 2408.12588): what attention gave at a step, given again later.

The implementation is that of diffusers (``diffusers.hooks.pyramid_attention_broadcast``). It keeps one state for every
call of a denoiser, so where guidance is two calls, uncond would be given cond's attention.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from flowblend_plugins import AdapterTraits, AttachTarget, Family, StackError
from flowblend_plugins.types import Denoiser, Foreign, Keywords

from .native_cache import BeforeCall, NativeCache
from .pipeline_timestep import PipelineTimestep, check_timestep_range

if TYPE_CHECKING:
    from torch import nn

KINDS = ("spatial", "temporal", "cross")


@dataclass(frozen=True, kw_only=True)
class PyramidAttentionBroadcast(NativeCache):
    """Reuse the outputs of attention for some steps.

    diffusers' Pyramid Attention Broadcast on each denoiser.

    Args:
        spatial_interval: self-attention is computed at one call in so many; 1 computes all, ``None`` leaves it alone.
        temporal_interval: likewise the attention of separate temporal blocks.
        cross_interval: likewise cross-attention.
        timestep_range: (low, high), both excluded: the timesteps at which attention may be given again, as the
            pipeline counts them (1000 is pure noise).
        denoisers: letters of the denoisers it is put on; ``None`` for all of them.
        warmup_steps: steps that are always computed after a denoiser enters.
    """

    spatial_interval: int | None = 2
    temporal_interval: int | None = None
    cross_interval: int | None = None
    timestep_range: tuple[int, int] = (100, 800)

    name: ClassVar[str] = "pyramid_attention_broadcast"
    page: ClassVar[str | None] = "docs/caches/pyramid_attention_broadcast.md"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        tells_branches_apart=False,
        min_useful_steps=2,
        wraps="attention",
        denoiser_kinds=frozenset({"transformer"}),
    )
    suggested: ClassVar[tuple[str, ...]] = (
        "pyramid_attention_broadcast",
        "pyramid_attention_broadcast(spatial_interval=4)",
    )
    observes_all_it_skips: ClassVar[bool] = True
    needs_registered_blocks: ClassVar[bool] = False
    needs_cache_contexts: ClassVar[bool] = False
    min_blocks: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        intervals = {f"{kind}_interval": self._interval(kind) for kind in KINDS}
        for option, interval in intervals.items():
            if interval is not None and interval < 1:
                raise ValueError(f"{option}={interval}: expected at least 1, or None")
        if not any(intervals.values()):
            raise ValueError(f"{', '.join(intervals)} are all None: expected a number for one of them")
        check_timestep_range("timestep_range", self.timestep_range)

    def config_for(self, denoiser: Denoiser, letter: str, target: AttachTarget) -> object:
        from diffusers import PyramidAttentionBroadcastConfig

        settings: Keywords = {"current_timestep_callback": PipelineTimestep(self.name, letter, target)}
        for kind in KINDS:
            interval = self._interval(kind)
            if interval is not None and not _attention(denoiser, kind):
                raise StackError(
                    f"{self.name!r} on denoiser {letter}: {kind}_interval={interval} fits no attention of "
                    f"{type(denoiser).__name__}, so it would do nothing. Set {kind}_interval=None."
                )
            settings[f"{kind}_attention_block_skip_range"] = interval
            settings[f"{kind}_attention_timestep_skip_range"] = self.timestep_range
        return PyramidAttentionBroadcastConfig(**settings)

    def observed_modules(self, denoiser: Denoiser) -> Sequence[nn.Module]:
        cached = [module for kind in KINDS if self._interval(kind) for module in _attention(denoiser, kind)]
        return list(dict.fromkeys(cached))

    def steered(self, denoiser: Denoiser, config: Foreign) -> BeforeCall:
        return config.current_timestep_callback.before_call

    def _interval(self, kind: str) -> int | None:
        return getattr(self, f"{kind}_interval")


def _attention(denoiser: Denoiser, kind: str) -> list[nn.Module]:
    """The modules that diffusers takes for ``spatial``, ``temporal`` or ``cross`` attention.

    Cross-attention is what says so of itself; that of LTX does not, and counts as spatial.
    """
    from diffusers.hooks import _common

    identifiers = getattr(_common, f"_{kind.upper()}_TRANSFORMER_BLOCK_IDENTIFIERS")
    found: list[nn.Module] = []
    for name, module in denoiser.named_modules():
        is_known = isinstance(module, _common._ATTENTION_CLASSES) and any(re.search(i, name) for i in identifiers)
        if is_known and getattr(module, "is_cross_attention", False) == (kind == "cross"):
            found.append(cast("nn.Module", module))
    return found
