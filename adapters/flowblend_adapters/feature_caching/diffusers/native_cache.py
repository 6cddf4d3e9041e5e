"""Adapter shared by diffusers' own caches: on through ``enable_cache``, off without a trace.

``enable_cache`` and ``disable_cache`` leave empty hook registries, forwards and attributes on modules; this restores
what was there. The router resets a cache at the switch through ``_reset_stateful_cache``, as pipelines do.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from flowblend_plugins import Adapter, AttachTarget, StackError, hookimpl
from flowblend_plugins.pipelines.source import opens_cache_contexts
from flowblend_plugins.types import Denoiser, Foreign, Pipeline

from ..chosen_denoisers import caches_of_one_blend, check_stage_options, choose_denoisers
from ..observed_calls import observed_calls, probe_beneath
from .own_hooks import enabled_cache, restored_hooks

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins import Outcome, StepContext

BeforeCall = Callable[["StepContext", bool], None]


@dataclass(frozen=True, kw_only=True)
class NativeCache(Adapter):
    """A cache that is put on a denoiser by diffusers' ``enable_cache(config)``.

    Args:
        denoisers: letters of the denoisers it is put on, like ``"L"``; ``None`` for all of them.
        warmup_steps: steps that are always computed after a denoiser enters, in each of its stages.
    """

    denoisers: str | None = None
    warmup_steps: int = 0

    skipped_outcome: ClassVar[str] = "reuse"
    """What a call was in which some of :meth:`observed_modules` did not run: ``"reuse"`` or ``"predict"``."""

    observes_all_it_skips: ClassVar[bool] = False
    """Beyond :meth:`observed_modules` everything runs at every call, so that its FLOPs are known."""

    needs_registered_blocks: ClassVar[bool] = True
    """It works on blocks whose class diffusers has registered with its block caches."""

    needs_cache_contexts: ClassVar[bool] = True
    """It keeps its state for each ``cache_context`` that the pipeline opens, and cannot run without one."""

    min_blocks: ClassVar[int] = 2
    """With fewer transformer blocks than this, diffusers cannot put it on."""

    def __post_init__(self) -> None:
        check_stage_options(self.denoisers, self.warmup_steps)

    @abc.abstractmethod
    def config_for(self, denoiser: Denoiser, letter: str, target: AttachTarget) -> object:
        """diffusers' config of this cache for one denoiser; raise ``StackError`` if it cannot have one.

        Called before anything is put on that denoiser.
        """

    @abc.abstractmethod
    def steered(self, denoiser: Denoiser, config: Foreign) -> BeforeCall:
        """The function that is called before every routed call of a denoiser that now has the cache.

        It is given where the call stands and whether it is in the warm-up, in which it must let the cache compute (and
        only then). It runs inside the cache context, so states may be read and written but not reset.
        """

    def observed_modules(self, denoiser: Denoiser) -> Sequence[nn.Module]:
        """Modules that all run, beneath the cache, if and only if a call is computed."""
        return transformer_blocks(denoiser)[-1:]

    def outcome_of_skip(self, denoiser: Denoiser) -> Outcome:
        """Outcome of the last call, in which some of :meth:`observed_modules` did not run."""
        return self.skipped_outcome  # type: ignore[return-value]

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[object]:
        chosen = choose_denoisers(self.name, self.denoisers, target)
        with caches_of_one_blend(self.name, chosen, target), self._on_all(chosen, target) as stages:
            yield stages

    @contextlib.contextmanager
    def _on_all(self, chosen: Mapping[str, nn.Module], target: AttachTarget) -> Iterator[StageEntries]:
        for letter, denoiser in chosen.items():
            obstacles = [*self._denoiser_obstacles(denoiser)]
            if not obstacles and getattr(denoiser, "is_cache_enabled", False):
                obstacles.append(
                    (
                        f"it has a cache enabled already ({type(denoiser._cache_config).__name__})",
                        f"Call disable_cache() on it first, or leave out {self.name!r}.",
                    )
                )
            for found, remedy in obstacles:
                raise StackError(f"{self.name!r} on denoiser {letter}: {found}. {remedy}")
        stages = StageEntries()
        with contextlib.ExitStack() as undo:
            for letter, denoiser in chosen.items():
                undo.enter_context(self._on(denoiser, letter, target, stages))
            yield stages

    @contextlib.contextmanager
    def _on(self, denoiser: Denoiser, letter: str, target: AttachTarget, stages: StageEntries) -> Iterator[None]:
        config = self.config_for(denoiser, letter, target)
        with contextlib.ExitStack() as undo:
            undo.enter_context(restored_hooks(denoiser))
            observed = self.observed_modules(denoiser)
            probes = [undo.enter_context(probe_beneath(module, target.trace)) for module in observed]
            names = {module: name for name, module in denoiser.named_modules()}
            undo.enter_context(enabled_cache(denoiser, config, target.trace))
            steer = self.steered(denoiser, cast("Foreign", config))

            def before_call(step: StepContext) -> None:
                steer(step, stages.steps_in_stage(step) < self.warmup_steps)

            def skipped_names() -> frozenset[str]:
                if not self.observes_all_it_skips:
                    return frozenset()
                skipped = (module for module, probe in zip(observed, probes, strict=True) if not probe.has_run)
                return frozenset(names[module] for module in skipped)

            def outcome() -> Outcome:
                return self.outcome_of_skip(denoiser)

            undo.enter_context(observed_calls(denoiser, probes, target.trace, outcome, before_call, skipped_names))
            yield

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        denoiser = getattr(pipe, "transformer", None)
        if denoiser is None:  # on a UNet the traits say all there is to say
            return
        if self.denoisers is None or "L" in self.denoisers:
            yield from self._denoiser_obstacles(denoiser)  # a cache that is there already is judged with the stack
        if self.needs_cache_contexts and opens_cache_contexts(type(pipe)) is False:
            yield (
                f"{type(pipe).__name__} opens no cache context, so the guidance branches could not be told apart",
                f"Leave out {self.name!r}, or use 'teacache', which is told the branch by other means.",
            )

    def _denoiser_obstacles(self, denoiser: Denoiser) -> Iterator[tuple[str, str]]:
        return denoiser_obstacles(denoiser, self.min_blocks, self.needs_registered_blocks)


class StageEntries:
    """Takes part in the blend to know at which step each denoiser last entered."""

    def __init__(self) -> None:
        self._entered_at: dict[str, int] = {}

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext) -> None:
        self._entered_at[step.denoiser] = step.step_index

    def steps_in_stage(self, step: StepContext) -> int:
        """Steps since the denoiser that answers entered; 0 at the step at which it does."""
        return step.step_index - self._entered_at.get(step.denoiser, step.step_index)


def denoiser_obstacles(denoiser: Denoiser, min_blocks: int, needs_registered_blocks: bool) -> Iterator[tuple[str, str]]:
    """Obstacles to a diffusers cache on a denoiser, as (what was found, what to do)."""
    name = type(denoiser).__name__
    if not hasattr(denoiser, "enable_cache"):
        yield (
            f"diffusers has no cache for {name} (it has no enable_cache)",
            "Use 'cache_dit' instead, if it takes this denoiser.",
        )
        return
    blocks = transformer_blocks(denoiser)
    if len(blocks) < min_blocks:
        yield (
            f"the {name} has {len(blocks)} transformer block{'' if len(blocks) == 1 else 's'}, and this cache needs "
            f"{min_blocks} or more",
            "Put it on the other denoisers only, with denoisers=..., or leave it out.",
        )
    elif needs_registered_blocks and not _has_registered_blocks(blocks):
        yield (
            f"diffusers' block caches do not know the {type(blocks[0]).__name__} of {name}",
            "Use 'taylorseer' instead, or 'cache_dit' if it takes this denoiser.",
        )


def transformer_blocks(denoiser: Denoiser) -> list[nn.Module]:
    """The repeated blocks of a denoiser, in the order in which diffusers' block caches take them."""
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS
    from torch import nn

    lists = [
        module
        for name, module in denoiser.named_children()
        if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS and isinstance(module, nn.ModuleList)
    ]
    return [block for blocks in lists for block in blocks]


def _has_registered_blocks(blocks: Sequence[nn.Module]) -> bool:
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        for block in blocks:
            TransformerBlockRegistry.get(type(block))
    except ValueError:
        return False
    return True
