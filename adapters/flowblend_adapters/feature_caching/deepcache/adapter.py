"""DeepCache (Ma et al., 2023, arXiv 2312.00858): the deep levels of a UNet are computed at some steps only.

The implementation is the package's own (``DeepCache.DeepCacheSDHelper``), one helper for each UNet. The package looks
the step up by its timestep, so that a timestep that stands twice in the list (PNDM, Heun) counts as one step for ever
after; here every helper is told the step instead. What it kept is forgotten when its UNet returns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, cast

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family, StackError, hookimpl
from flowblend_plugins.types import Denoiser, Foreign, Pipeline

from ..chosen_denoisers import caches_of_one_blend, check_stage_options, choose_denoisers
from ..observed_calls import Probe, observed_calls
from .helper import SteeredHelper, find_helper, left_as_found, names_by_key, restored_forwards

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins import StepContext

_LAYERS_PER_BLOCK = 3  # how the package numbers branches: branch 4 is layer 1 of block 1

_TRAITS = AdapterTraits(
    family=Family.FEATURE_CACHING,
    carries_step_state=True,
    tells_branches_apart=False,
    min_useful_steps=2,
    wraps="blocks",
    denoiser_kinds=frozenset({"unet"}),
)


@dataclass(frozen=True, kw_only=True)
class DeepCache(Adapter):
    """Compute only a UNet's outer layers at most steps.

    DeepCache on each UNet, by step: at one step in ``interval`` all of it is computed, else its outer layers only.

    Args:
        interval: all of a UNet is computed at one step in so many, counted from where it enters; 1 computes always.
        branch: how much is computed at the other steps: 0 is the outermost skip connection alone, 1 and 2 the next
            layers of the first block, 3 reaches into the second block, and so on (``cache_branch_id``).
        denoisers: letters of the denoisers it is put on; ``None`` for all of them.
        warmup_steps: steps that are always computed after a denoiser enters.
    """

    interval: int = 3
    branch: int = 0
    denoisers: str | None = None
    warmup_steps: int = 0

    name: ClassVar[str] = "deepcache"
    page: ClassVar[str | None] = "docs/caches/deepcache.md"
    package: ClassVar[str | None] = "DeepCache"
    traits: ClassVar[AdapterTraits] = _TRAITS
    suggested: ClassVar[tuple[str, ...]] = ("deepcache(interval=2)", "deepcache(interval=3)")

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval={self.interval}: expected at least 1")
        if self.branch < 0:
            raise ValueError(f"branch={self.branch}: expected at least 0")
        check_stage_options(self.denoisers, self.warmup_steps)

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        yield from _transformer_obstacle(pipe)
        if hasattr(pipe, "unet") and (self.denoisers is None or "L" in self.denoisers):
            yield from _branch_obstacle(pipe.unet, self.branch)

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[_Steering]:
        chosen = choose_denoisers(self.name, self.denoisers, target)
        with caches_of_one_blend(self.name, chosen, target), self._on_all(chosen, target) as steering:
            yield steering

    @contextlib.contextmanager
    def _on_all(self, chosen: Mapping[str, nn.Module], target: AttachTarget) -> Iterator[_Steering]:
        for letter, unet in chosen.items():
            if find_helper(unet) is not None:
                raise StackError(
                    f"{self.name!r} on denoiser {letter}: a DeepCacheSDHelper is enabled on it already. Call its "
                    f"disable() first, or leave out {self.name!r}."
                )
            for found, remedy in _branch_obstacle(unet, self.branch):
                raise StackError(f"{self.name!r} on denoiser {letter}: {found}. {remedy}")
        steering = _Steering(target, self.warmup_steps)
        with contextlib.ExitStack() as undo:
            for letter, unet in chosen.items():
                undo.enter_context(_own_helper(unet, letter, self.interval, self.branch, steering))
            yield steering


@dataclass(frozen=True, kw_only=True)
class AdoptedDeepCache(Adapter):
    """Keep a ``DeepCacheSDHelper`` that was enabled before.

    A ``DeepCacheSDHelper`` that was enabled on the pipeline before FlowBlending was.

    Args:
        mirror: put DeepCache with the same parameters on the other denoisers too.
    """

    mirror: bool = False

    name: ClassVar[str] = "adopted_deepcache"
    page: ClassVar[str | None] = "docs/caches/deepcache.md"
    suggested: ClassVar[tuple[str, ...]] = ()  # it is found on a pipeline, not asked for
    traits: ClassVar[AdapterTraits] = replace(
        _TRAITS,
        wraps=None,  # not put on here, so it is in nobody's way
        sets=frozenset({"DeepCache"}),
    )

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        if hasattr(pipe, "unet") and find_helper(pipe.unet) is None:
            yield (
                f"no DeepCacheSDHelper is enabled on the {type(pipe.unet).__name__}",
                "Enable one before enable(), or use 'deepcache'.",
            )

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[_Steering]:
        helpers = {letter: find_helper(unet) for letter, unet in target.denoisers.items()}
        steering = _Steering(target, 0)
        with contextlib.ExitStack() as undo:
            for letter, helper in helpers.items():
                if helper is not None:
                    undo.enter_context(left_as_found(helper))
                    undo.enter_context(steering.over(helper, target.denoisers[letter], letter))
            large = helpers["L"]
            for letter, unet in target.denoisers.items():
                if self.mirror and large is not None and helpers[letter] is None:
                    block, layer = large.params["cache_block_id"], large.params["cache_layer_id"]
                    branch, interval = _LAYERS_PER_BLOCK * block + layer, large.params["cache_interval"]
                    for found, remedy in _branch_obstacle(unet, branch):
                        raise StackError(f"{self.name!r} mirrored on denoiser {letter}: {found}. {remedy}")
                    undo.enter_context(caches_of_one_blend(self.name, {letter: unet}, target))
                    undo.enter_context(_own_helper(unet, letter, interval, branch, steering))
            yield steering


def adopt_deepcache(pipe: Pipeline) -> list[Adapter]:
    """The adapter for a helper that is enabled on a pipeline's UNet, if there is one."""
    return [] if find_helper(getattr(pipe, "unet", None)) is None else [AdoptedDeepCache()]


class _Steering:
    """Takes part in the blend to tell every helper the step, and to let it forget when its UNet enters."""

    def __init__(self, target: AttachTarget, warmup_steps: int) -> None:
        self._target = target
        self._warmup_steps = warmup_steps
        self._helpers: dict[str, SteeredHelper] = {}

    @contextlib.contextmanager
    def over(self, helper: Foreign, unet: Denoiser, letter: str) -> Iterator[None]:
        """Steer one helper, whose wrappers are on ``unet``, and report what its calls really did."""
        steered = self._helpers[letter] = SteeredHelper(helper, self._warmup_steps)
        functions = helper.function_dict
        names = names_by_key(unet)
        probes = {key: Probe(self._target.trace) for key in names}
        found = {key: functions[key] for key in names}
        functions.update({key: probe.on(found[key]) for key, probe in probes.items()})
        helper.is_skip_step = steered.is_skip_step
        trace = self._target.trace

        def skipped_names() -> frozenset[str]:
            skipped = {names[key] for key, probe in probes.items() if not probe.has_run}
            return frozenset(name for name in skipped if not any(name.startswith(f"{other}.") for other in skipped))

        def before_any_call(module: nn.Module, args: object) -> None:
            if trace.step is None:
                steered.compute_apart()

        with contextlib.ExitStack() as undo:
            undo.callback(functions.update, found)
            undo.callback(helper.__dict__.pop, "is_skip_step", None)
            undo.callback(unet.register_forward_pre_hook(before_any_call).remove)
            watched = list(probes.values())
            undo.enter_context(observed_calls(unet, watched, trace, "reuse", steered.follow, skipped_names))
            yield

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext, reentry: str) -> None:
        if step.denoiser in self._helpers:
            self._helpers[step.denoiser].enter(step, reentry)

    @hookimpl
    def flowblend_generation_finished(self) -> None:
        for helper in self._helpers.values():  # also after an error; and a finished generation holds no memory
            helper.forget()


@contextlib.contextmanager
def _own_helper(unet: Denoiser, letter: str, interval: int, branch: int, steering: _Steering) -> Iterator[None]:
    from DeepCache import DeepCacheSDHelper

    class Helper(DeepCacheSDHelper):
        def wrap_unet_forward(self) -> None:
            """Nothing to find out from the call: the step is known."""

    helper = Helper(pipe=SimpleNamespace(unet=unet))
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    with restored_forwards(unet):
        helper.enable()
        with steering.over(cast(Foreign, helper), unet, letter):
            yield


def _transformer_obstacle(pipe: Pipeline) -> Iterator[tuple[str, str]]:
    if not hasattr(pipe, "unet"):
        denoiser = type(getattr(pipe, "transformer", pipe)).__name__
        yield (
            f"{denoiser} has no levels, and DeepCache is to leave out the deep levels of a UNet",
            "Use 'first_block_cache', 'teacache' or 'cache_dit' instead.",
        )


def _branch_obstacle(unet: Denoiser, branch: int) -> Iterator[tuple[str, str]]:
    """A branch that the UNet has not: the package would silently leave out the middle block alone."""
    there = [
        _LAYERS_PER_BLOCK * index + layer
        for index, block in enumerate(unet.down_blocks)
        for layer in range(min(_LAYERS_PER_BLOCK, len(block.resnets) + len(block.downsamplers or ())))
    ]
    if branch not in there:
        yield (
            f"branch={branch} is not in this {type(unet).__name__}, which has {', '.join(map(str, there))}",
            "Name one of these; the lower, the more is left out.",
        )
