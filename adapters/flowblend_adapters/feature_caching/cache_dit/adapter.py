"""DBCache of cache-dit: the first blocks say how much has changed since the last computed step; if little, the rest is
not run.

The blocks, the rule and the state are the package's own (``cache_dit``, vipshop/cache-dit). Its ``enable_cache`` is
not: it patches ``__call__`` on the pipeline's class, so for every pipeline of that class, replaces the denoiser's
``forward``, which model offloading takes off again after one generation, and changes the order of its modules. Here
the cached blocks stand in only while a denoiser call of the blend runs.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family, StackError
from flowblend_plugins.types import Denoiser, Foreign, Pipeline

from ..chosen_denoisers import caches_of_one_blend, check_stage_options, choose_denoisers
from ..observed_calls import Probe
from ..ranks import splitting_obstacles
from .contexts import BranchContexts, CacheDitSteering, probes_in_the_middle

if TYPE_CHECKING:
    from cache_dit import ForwardPattern
    from torch import nn

CACHE_DIT_TRAITS = AdapterTraits(
    family=Family.FEATURE_CACHING,
    carries_step_state=True,
    min_useful_steps=2,
    wraps="blocks",
    denoiser_kinds=frozenset({"transformer"}),
)


@dataclass(frozen=True, kw_only=True)
class CacheDit(Adapter):
    """Reuse blocks with cache-dit's own DBCache.

    cache-dit's DBCache on each denoiser.

    Args:
        threshold: relative change of what the first blocks add, ``mean|r - r_before| / mean|r|``, below which the
            blocks in the middle are not run (``residual_diff_threshold``). 0 computes always.
        fn_blocks: how many first blocks always run and are measured (``Fn_compute_blocks``).
        bn_blocks: how many last blocks always run (``Bn_compute_blocks``).
        max_cached_steps: at most so many steps of a stage are reused; ``None`` for any number.
        max_continuous_cached_steps: at most so many of them in a row; ``None`` for any number.
        denoisers: letters of the denoisers it is put on; ``None`` for all of them.
        warmup_steps: steps that are always computed after a denoiser enters.
    """

    threshold: float = 0.08
    fn_blocks: int = 1
    bn_blocks: int = 0
    max_cached_steps: int | None = None
    max_continuous_cached_steps: int | None = None
    denoisers: str | None = None
    warmup_steps: int = 0

    name: ClassVar[str] = "cache_dit"
    page: ClassVar[str | None] = "docs/caches/cache_dit.md"
    package: ClassVar[str | None] = "cache-dit"
    traits: ClassVar[AdapterTraits] = CACHE_DIT_TRAITS
    suggested: ClassVar[tuple[str, ...]] = ("cache_dit(threshold=0.08)", "cache_dit(threshold=0.15)")

    def __post_init__(self) -> None:
        check_stage_options(self.denoisers, self.warmup_steps)
        if not 0.0 <= self.threshold < math.inf:
            raise ValueError(f"threshold={self.threshold}: expected a number from 0 up")
        if self.fn_blocks < 1:
            raise ValueError(f"fn_blocks={self.fn_blocks}: expected at least 1")
        for option in ("bn_blocks", "max_cached_steps", "max_continuous_cached_steps"):
            value = getattr(self, option)
            if value is not None and value < 0:
                raise ValueError(f"{option}={value}: expected at least 0")

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        denoiser = getattr(pipe, "transformer", None)
        if denoiser is None:  # on a UNet the traits say all there is to say
            return
        if self.denoisers is None or "L" in self.denoisers:
            yield from cache_dit_obstacles(denoiser, self.fn_blocks, self.bn_blocks)

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[CacheDitSteering]:
        chosen = choose_denoisers(self.name, self.denoisers, target)
        with caches_of_one_blend(self.name, chosen, target), self._on_all(chosen, target) as steering:
            yield steering

    @contextlib.contextmanager
    def _on_all(self, chosen: Mapping[str, nn.Module], target: AttachTarget) -> Iterator[CacheDitSteering]:
        for letter, denoiser in chosen.items():
            for found, remedy in cache_dit_obstacles(denoiser, self.fn_blocks, self.bn_blocks, is_taken_refused=True):
                raise StackError(f"{self.name!r} on denoiser {letter}: {found}. {remedy}")
        steering = CacheDitSteering(self.name, target)
        with contextlib.ExitStack() as undo:
            for letter, denoiser in chosen.items():
                undo.enter_context(
                    own_cached_blocks(denoiser, letter, target, steering, self._config(), None, self.warmup_steps)
                )
            yield steering

    def _config(self) -> Any:
        from cache_dit import DBCacheConfig

        return DBCacheConfig(
            Fn_compute_blocks=self.fn_blocks,
            Bn_compute_blocks=self.bn_blocks,
            residual_diff_threshold=self.threshold,
            max_warmup_steps=0,
            max_cached_steps=-1 if self.max_cached_steps is None else self.max_cached_steps,
            max_continuous_cached_steps=(
                -1 if self.max_continuous_cached_steps is None else self.max_continuous_cached_steps
            ),
            enable_separate_cfg=False,
        )


class _BlockList(NamedTuple):
    name: str
    blocks: nn.ModuleList
    pattern: ForwardPattern  # cache-dit's ForwardPattern: what a block takes and gives


@contextlib.contextmanager
def own_cached_blocks(
    denoiser: Denoiser,
    letter: str,
    target: AttachTarget,
    steering: CacheDitSteering,
    config: Foreign,
    calibrator_config: Foreign | None,
    warmup_steps: int | None,
) -> Iterator[None]:
    """Let a denoiser run its blocks through cache-dit in every call of the blend, and in no other.

    Args:
        denoiser: one that :func:`cache_dit_obstacles` has nothing against.
        letter: its letter.
        target: the blend.
        steering: what is to steer it.
        config: cache-dit's config.
        calibrator_config: cache-dit's config of a calibrator, or ``None``.
        warmup_steps: as in :class:`BranchContexts`.
    """
    from cache_dit.caching.cache_blocks import UnifiedBlocks
    from cache_dit.caching.cache_contexts import CachedContextManager
    from torch import nn

    known = _known_blocks(denoiser)
    assert known is not None
    manager = CachedContextManager(name=f"flowblend_{letter}")
    stand_ins: dict[str, nn.ModuleList] = {name: nn.ModuleList() for name in known.dummy_blocks_names}
    with contextlib.ExitStack() as undo:
        probes: dict[str, Probe] = {}
        for block_list in _block_lists(known):
            manager.reset_context(block_list.name, cache_config=config, calibrator_config=calibrator_config)
            try:
                with _without_announcements():
                    cached: Any = UnifiedBlocks(
                        block_list.blocks,
                        transformer=cast("nn.Module", denoiser),
                        forward_pattern=block_list.pattern,
                        check_forward_pattern=known.check_forward_pattern,
                        check_num_outputs=False,
                        cache_prefix=block_list.name,
                        cache_context=block_list.name,
                        context_manager=manager,
                        cache_type=config.cache_type,
                    )
            except AssertionError as error:
                raise StackError(
                    f"{target_name(denoiser)} has blocks that cache-dit cannot cache: {error} Leave cache-dit out."
                ) from error
            # A denoiser within its own blocks is a cycle, in which `denoiser.to(...)` (offloading) would not end.
            cached.transformer = None
            stand_ins[block_list.name] = nn.ModuleList([cached])
            probes |= undo.enter_context(probes_in_the_middle(block_list.name, block_list.blocks, config, target.trace))
        steering.at_end.append(undo.enter_context(_standing_in(denoiser, stand_ins, target)))
        contexts = BranchContexts(
            cast(Foreign, manager), [block_list.name for block_list in _block_lists(known)], warmup_steps
        )
        is_predicting = calibrator_config is not None and calibrator_config.enable_calibrator
        undo.enter_context(steering.over(denoiser, letter, contexts, probes, is_predicting))
        yield


@contextlib.contextmanager
def _standing_in(
    denoiser: Denoiser, stand_ins: dict[str, nn.ModuleList], target: AttachTarget
) -> Iterator[Callable[[], None]]:
    """Other lists of blocks in a denoiser's attributes while a call of the blend runs, in the same places.

    Gives the function that puts the own ones back: torch calls no hook after a KeyboardInterrupt.
    """
    own = {name: denoiser._modules[name] for name in stand_ins}

    def put_in(module: nn.Module, args: object) -> None:
        if target.trace.step is not None:
            module._modules.update(stand_ins)

    def put_back(*_: object) -> None:
        denoiser._modules.update(own)

    with contextlib.ExitStack() as undo:
        undo.callback(denoiser.register_forward_pre_hook(put_in).remove)
        undo.callback(denoiser.register_forward_hook(put_back, always_call=True).remove)  # also after an error
        yield put_back


@contextlib.contextmanager
def _without_announcements() -> Iterator[None]:
    """cache-dit says on standard output, where a program may read JSON, which blocks it has matched."""
    from cache_dit.caching.cache_blocks import pattern_3_4_5, pattern_base

    loggers = (pattern_base.logger, pattern_3_4_5.logger)
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def target_name(denoiser: Denoiser) -> str:
    return f"the {type(denoiser).__name__}"


def cache_dit_obstacles(
    denoiser: Denoiser, fn_blocks: int, bn_blocks: int, is_taken_refused: bool = False
) -> Iterator[tuple[str, str]]:
    """Obstacles to DBCache on a denoiser; a cache on the large one was judged with the stack."""
    if is_taken_refused and getattr(denoiser, "is_cache_enabled", False):
        found = type(denoiser._cache_config).__name__
        yield f"it has a cache of diffusers' enabled already ({found})", "Call disable_cache() on it first."
        return
    yield from splitting_obstacles(denoiser)
    known = _known_blocks(denoiser)
    if known is None:
        yield f"cache-dit does not know {type(denoiser).__name__}", "Use another cache, or leave it out."
        return
    if known.patch_functor is not None:
        yield (
            f"cache-dit would replace the forward of {type(denoiser).__name__} by a copy of its own, which does not "
            "keep up with diffusers'",
            "Use another cache, or leave it out.",
        )
        return
    for block_list in _block_lists(known):
        num_blocks = len(block_list.blocks)
        if fn_blocks + bn_blocks >= num_blocks:
            yield (
                f"fn_blocks={fn_blocks} and bn_blocks={bn_blocks} always run, and {target_name(denoiser)} has only "
                f"{num_blocks} in `{block_list.name}`, so nothing would be reused",
                "Ask for fewer, or put it on the other denoisers only, with denoisers=....",
            )


def _known_blocks(denoiser: Denoiser) -> Foreign | None:
    """cache-dit's own description of a denoiser's blocks (``BlockAdapter``), read without touching the denoiser."""
    from cache_dit import BlockAdapterRegister

    try:
        return cast(Foreign, BlockAdapterRegister.get_adapter(denoiser, skip_post_init=True))
    except (AssertionError, AttributeError):  # a class of the same first letters, but not the one it knows
        return None


def _block_lists(known: Foreign) -> list[_BlockList]:
    (denoiser,) = known.transformer if isinstance(known.transformer, list) else [known.transformer]
    lists = known.blocks if isinstance(known.blocks, list) else [known.blocks]
    patterns = known.forward_pattern if isinstance(known.forward_pattern, list) else [known.forward_pattern]
    names = {id(module): name for name, module in denoiser.named_children()}
    return [_BlockList(names[id(blocks)], blocks, pattern) for blocks, pattern in zip(lists, patterns, strict=True)]
