"""A cache of diffusers' own that the user enabled through ``enable_cache`` before FlowBlending was.

The router resets it at every switch. Here its calls are observed, MagCache's count follows the true step, and its
config is put on the other denoisers where that is asked for. On the denoiser that brought it along it is left as it was
found.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family, StackError, hookimpl
from flowblend_plugins.contract.stack import is_guided, setting_of
from flowblend_plugins.types import Denoiser, Foreign, Keywords, Pipeline

from ..chosen_denoisers import caches_of_one_blend
from ..observed_calls import Probe, observed_calls
from ..ranks import first_blocks_agree
from .mag_cache import mag_states
from .native_cache import StageEntries, transformer_blocks
from .own_hooks import enabled_cache, hooks_named, restored_hooks

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins import Outcome, StepContext
    from flowblend_plugins.trace.reporter import CallReporter


class _NativeKind(NamedTuple):
    """Facts about one of diffusers' caches.

    Attributes:
        hooks: names of its hooks on modules that do not run, beneath them, in a call that is not computed.
        skipped_outcome: what such a call is.
        tells_branches_apart: its state is kept for each cache context.
        min_blocks: with fewer transformer blocks diffusers cannot put it on.
        hooks_all_it_skips: all else runs at every call.
    """

    hooks: tuple[str, ...] = ()
    skipped_outcome: Outcome = "reuse"
    tells_branches_apart: bool = True
    min_blocks: int = 1
    hooks_all_it_skips: bool = True


_KINDS = {
    "FirstBlockCacheConfig": _NativeKind(("fbc_block_hook",), min_blocks=2),
    "MagCacheConfig": _NativeKind(("mag_cache_leader_block_hook", "mag_cache_block_hook")),
    "SeaCacheConfig": _NativeKind(("sea_cache_leader_block", "sea_cache_block"), min_blocks=2),
    "TaylorSeerCacheConfig": _NativeKind(("taylorseer_cache",), "predict"),
    "PyramidAttentionBroadcastConfig": _NativeKind(("pyramid_attention_broadcast",), tells_branches_apart=False),
    "FasterCacheConfig": _NativeKind(
        ("faster_cache_block",), "predict", tells_branches_apart=False, hooks_all_it_skips=False
    ),
}


# `enable_cache` sets the attribute; a hook of these names without it came from one of diffusers' `apply_*` functions.
_SETS = frozenset(
    {
        "_cache_config",
        *("fbc_leader_block_hook", "fbc_block_hook", "mag_cache_leader_block_hook", "mag_cache_block_hook"),
        *("sea_cache_root", "sea_cache_leader_block", "sea_cache_block", "sea_cache_post_norm", "taylorseer_cache"),
        *("pyramid_attention_broadcast", "faster_cache_denoiser", "faster_cache_block"),
        *("text_kv_cache_transformer", "text_kv_cache_block"),
    }
)


@dataclass(frozen=True, kw_only=True)
class AdoptedDiffusersCache(Adapter):
    """Keep the cache that ``enable_cache`` put on.

    The cache that was enabled on the pipeline's denoiser by ``enable_cache``.

    It joins the stack by itself; name it only to set an option.

    Args:
        mirror: put a copy of the same config on the denoisers that have no cache, until ``disable()``.
    """

    mirror: bool = False

    name: ClassVar[str] = "adopted_diffusers_cache"
    page: ClassVar[str | None] = "docs/caches/adopted_diffusers_cache.md"
    suggested: ClassVar[tuple[str, ...]] = ()  # it is found on a pipeline, not asked for
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        wraps="blocks",
        sets=_SETS,
        denoiser_kinds=frozenset({"transformer"}),
    )

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        if not cached_denoisers(pipe):
            yield (
                f"no cache is enabled on the denoiser of this {type(pipe).__name__}",
                "Call pipe.transformer.enable_cache(...) first, or leave it out.",
            )

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[object]:
        cached = {letter: d for letter, d in target.denoisers.items() if getattr(d, "is_cache_enabled", False)}
        config = cast(Foreign, next(iter(cached.values()))._cache_config)
        stages = StageEntries()
        with contextlib.ExitStack() as undo:
            if self.mirror:
                for letter in sorted(target.denoisers.keys() - cached.keys()):
                    cached[letter] = target.denoisers[letter]
                    undo.enter_context(caches_of_one_blend(self.name, {letter: cached[letter]}, target))
                    undo.enter_context(_mirrored(letter, cached[letter], config, target))
            for denoiser in cached.values():
                undo.enter_context(_observed(denoiser, target))
                undo.enter_context(_entering_above_its_range(denoiser, target, stages))
            if _kind(config).tells_branches_apart:
                yield stages
            else:
                setting = setting_of(target.pipeline, "transformer", target.schedule, target.reentry)
                yield _BranchGuard(config, setting.branches_called_apart, stages)


def cached_denoisers(pipe: Pipeline) -> list[nn.Module]:
    """The denoisers that a pipeline calls and that have a cache of diffusers' own enabled."""
    if getattr(pipe, "transformer", None) is None:
        return []
    from flowblend_plugins.pipelines.components import called_denoisers

    return [d for d in called_denoisers(pipe, "transformer") if getattr(d, "is_cache_enabled", False) is True]


def adopt_diffusers_cache(pipe: Pipeline) -> list[Adapter]:
    """The adapter for what is enabled on this pipeline already, if anything is."""
    return [AdoptedDiffusersCache()] if cached_denoisers(pipe) else []


class _BranchGuard:
    """Refuses calls in which such a cache would answer one guidance branch from the other."""

    def __init__(self, config: Foreign, branches_called_apart: bool | None, stages: StageEntries) -> None:
        self._config = config
        self._branches_called_apart = branches_called_apart
        self._stages = stages

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext) -> None:
        self._stages.flowblend_stage_entered(step)

    @hookimpl
    def flowblend_configure_generation(self, pipeline: Pipeline, call_arguments: Keywords) -> None:
        if self._branches_called_apart and is_guided(pipeline, call_arguments):
            raise StackError(
                f"the {type(self._config).__name__} that is enabled on this {type(pipeline).__name__} keeps one state "
                "for both guidance branches, and the pipeline calls the denoiser once for each, so one branch would be "
                "answered from the other's state. Call the pipeline with guidance_scale=1.0, or call disable_cache() "
                "and use a cache that tells branches apart, like 'first_block_cache'."
            )


def _kind(config: Foreign) -> _NativeKind:
    return _KINDS.get(type(config).__name__, _NativeKind())  # a cache of text alone skips no call


@contextlib.contextmanager
def _mirrored(letter: str, denoiser: Denoiser, config: Foreign, target: AttachTarget) -> Iterator[None]:
    name, min_blocks = type(config).__name__, _kind(config).min_blocks
    found = len(transformer_blocks(denoiser))
    if found < min_blocks:
        raise StackError(
            f"'adopted_diffusers_cache': mirror=True cannot put {name} on denoiser {letter}, which has {found} "
            f"transformer block(s) where {min_blocks} are needed. Leave mirror out."
        )
    with restored_hooks(denoiser), enabled_cache(denoiser, copy.copy(config), target.trace):
        yield


@contextlib.contextmanager
def _observed(denoiser: Denoiser, target: AttachTarget) -> Iterator[None]:
    config = denoiser._cache_config
    kind = _kind(config)
    steer: Callable[[StepContext], None] = _nothing
    if type(config).__name__ == "MagCacheConfig":
        steer = _mag_count(denoiser, config)
    with contextlib.ExitStack() as undo:
        probes = [
            (name, undo.enter_context(probe)) for name, probe in _probes_beneath(denoiser, kind.hooks, target.trace)
        ]

        def skipped_names() -> frozenset[str]:
            if not kind.hooks_all_it_skips:
                return frozenset()
            return frozenset(name for name, probe in probes if not probe.has_run)

        watched = [probe for _, probe in probes]
        undo.enter_context(observed_calls(denoiser, watched, target.trace, kind.skipped_outcome, steer, skipped_names))
        undo.enter_context(first_blocks_agree(denoiser))
        yield


@contextlib.contextmanager
def _entering_above_its_range(denoiser: Denoiser, target: AttachTarget, stages: StageEntries) -> Iterator[None]:
    """FasterCache extrapolates from nothing, and crashes, if a denoiser enters within its range of timesteps."""
    names = ("faster_cache_denoiser", "faster_cache_block")
    own = [(hook, hook.current_timestep_callback) for name in names for hook in hooks_named(denoiser, name)]

    def above(callback: Callable[[], float]) -> Callable[[], float]:
        def timestep() -> float:
            step = target.trace.step
            if step is None:
                return callback()
            past = stages.steps_in_stage(step)
            # In a range that serves it by hand, the first step of a generation lies outside already.
            return math.inf if past < (2 if step.step_index > past else 1) else callback()

        return timestep

    try:
        for hook, callback in own:
            hook.current_timestep_callback = above(callback)
        yield
    finally:
        for hook, callback in own:
            hook.current_timestep_callback = callback


def _nothing(step: StepContext) -> None:
    pass


def _mag_count(denoiser: Denoiser, config: Foreign) -> Callable[[StepContext], None]:
    """MagCache's own count of calls, set to the true step; by itself it starts again at the end of its ratios."""
    states = mag_states(denoiser)

    def before_call(step: StepContext) -> None:
        states.get_state().step_index = step.step_index % config.num_inference_steps

    return before_call


def _probes_beneath(
    denoiser: Denoiser, hooks: tuple[str, ...], trace: CallReporter
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Probe]]]:
    for name, module in denoiser.named_modules():
        registry: Foreign | None = module.__dict__.get("_diffusers_hook")
        if registry is not None:
            for hook in registry.hooks.keys() & {*hooks}:
                yield name, _probe_beneath(module, registry.hooks[hook].fn_ref, trace)


@contextlib.contextmanager
def _probe_beneath(module: Denoiser, reference: Foreign, trace: CallReporter) -> Iterator[Probe]:
    """A probe between a hook that is on already and what it hooks."""
    probe, forward = Probe(trace), reference.original_forward
    noted = probe.on(forward)
    reference.original_forward = noted
    try:
        yield probe
    finally:
        reference.original_forward = forward
        if module.__dict__.get("forward") is noted:  # the user called disable_cache() meanwhile
            module.forward = forward
