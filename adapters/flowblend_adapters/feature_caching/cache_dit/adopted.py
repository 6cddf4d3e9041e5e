"""cache-dit as a user enabled it before FlowBlending: left in place, and told when what it kept is stale."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, StackError
from flowblend_plugins.types import Denoiser, Foreign, Pipeline

from ..chosen_denoisers import caches_of_one_blend, has_cache_dit
from ..observed_calls import Probe
from .adapter import CACHE_DIT_TRAITS, cache_dit_obstacles, own_cached_blocks
from .contexts import BranchContexts, CacheDitSteering, probes_in_the_middle

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdoptedCacheDit(Adapter):
    """Keep a cache-dit that was enabled before.

    A cache-dit that was enabled on the pipeline, or on its denoiser, before FlowBlending was.

    Args:
        mirror: put cache-dit with the same configuration on the other denoisers too.
    """

    mirror: bool = False

    name: ClassVar[str] = "adopted_cache_dit"
    page: ClassVar[str | None] = "docs/caches/cache_dit.md"
    suggested: ClassVar[tuple[str, ...]] = ()  # it is found on a pipeline, not asked for
    traits: ClassVar[AdapterTraits] = replace(
        CACHE_DIT_TRAITS,
        wraps=None,  # not put on here, so in nobody's way
        sets=frozenset({"_context_kwargs", "cache_dit"}),
    )

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        denoiser = getattr(pipe, "transformer", None)
        if denoiser is None:  # on a UNet the traits say all there is to say
            return
        if has_cache_dit(denoiser):
            yield from _obstacles(denoiser)
        else:
            yield (
                f"cache-dit is not enabled on the {type(denoiser).__name__}",
                "Call cache_dit.enable_cache(pipe) before enable(), or use 'cache_dit'.",
            )

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[CacheDitSteering]:
        steering = CacheDitSteering(self.name, target)
        settings = vars(target.denoisers["L"])["_context_kwargs"]
        config, calibrator_config = settings["cache_config"], settings.get("calibrator_config")
        with contextlib.ExitStack() as undo:
            for letter, denoiser in target.denoisers.items():
                if has_cache_dit(denoiser):
                    for found, remedy in _obstacles(denoiser):
                        raise StackError(f"{self.name!r} on denoiser {letter}: {found}. {remedy}")
                    undo.enter_context(_steered(denoiser, letter, steering))
                elif self.mirror:
                    obstacles = cache_dit_obstacles(denoiser, config.Fn_compute_blocks, config.Bn_compute_blocks)
                    for found, remedy in obstacles:
                        raise StackError(f"{self.name!r} mirrored on denoiser {letter}: {found}. {remedy}")
                    undo.enter_context(caches_of_one_blend(self.name, {letter: denoiser}, target))
                    mirrored = own_cached_blocks(denoiser, letter, target, steering, config, calibrator_config, None)
                    undo.enter_context(mirrored)
            yield steering


@contextlib.contextmanager
def _steered(denoiser: Denoiser, letter: str, steering: CacheDitSteering) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        probes: dict[str, Probe] = {}
        for name, blocks, config in _cached_lists(denoiser):
            probes |= undo.enter_context(probes_in_the_middle(name, blocks, config, steering.trace))
        calibrator = denoiser._context_kwargs.get("calibrator_config")
        contexts = BranchContexts(denoiser._context_manager, denoiser._context_names, None)
        is_predicting = calibrator is not None and calibrator.enable_calibrator
        undo.enter_context(steering.over(denoiser, letter, contexts, probes, is_predicting))
        yield


def _cached_lists(denoiser: Denoiser) -> list[tuple[str, nn.ModuleList, Foreign]]:
    """The lists of blocks that cache-dit runs: name, blocks, and the config, which it keeps on them."""
    return [
        (name, child, child.__dict__["_context_kwargs"]["cache_config"])
        for name, child in denoiser.named_children()
        if "_context_kwargs" in child.__dict__
    ]


def _obstacles(denoiser: Denoiser) -> Iterator[tuple[str, str]]:
    """Reason that a user's cache-dit set-up cannot be adopted."""
    if "_hf_hook" in denoiser.__dict__ and _is_cache_dits(denoiser.__dict__.get("forward")):
        yield (
            "cache-dit was enabled after model offloading, which takes it off again at the end of a generation",
            "Call enable_model_cpu_offload() after cache_dit.enable_cache(), or use 'cache_dit' instead.",
        )
    for _, blocks, config in _cached_lists(denoiser):
        if config.cache_type.name != "DBCache":
            yield (
                f"cache-dit runs as {config.cache_type.name}, and FlowBlending can steer DBCache only",
                "Enable it with a DBCacheConfig, or call cache_dit.disable_cache().",
            )
        elif config.Fn_compute_blocks + config.Bn_compute_blocks >= len(blocks):
            yield (
                f"cache-dit always runs Fn_compute_blocks={config.Fn_compute_blocks} and Bn_compute_blocks="
                f"{config.Bn_compute_blocks} of {len(blocks)} blocks, so it reuses nothing",
                "Enable it with fewer, or call cache_dit.disable_cache().",
            )


def adopt_cache_dit(pipe: Pipeline) -> Iterator[Adapter]:
    """Adapters for the cache-dit that a pipeline brings along, if it is on."""
    if has_cache_dit(getattr(pipe, "transformer", None)):
        yield AdoptedCacheDit()


def _is_cache_dits(forward: object) -> bool:
    return isinstance(forward, functools.partial) and forward.func.__module__.partition(".")[0] == "cache_dit"
