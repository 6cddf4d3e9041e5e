"""FasterCache (Lv et al., 2024, arXiv 2410.19355): attention extrapolated from two steps, uncond estimated from cond.

The implementation is that of diffusers (``diffusers.hooks.faster_cache``). Where both guidance branches are one batch
of video latents, cond alone runs at most steps, and uncond is cond plus their last known difference, in two frequency
bands. Everywhere else only attention is extrapolated. One state serves every call of a denoiser, so guidance in two
calls is refused.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from flowblend_plugins import AdapterTraits, AttachTarget, Family, StackError, hookimpl
from flowblend_plugins.contract.stack import is_guided
from flowblend_plugins.types import Denoiser, Foreign, Keywords, Pipeline

from ..chosen_denoisers import choose_denoisers
from .native_cache import BeforeCall, NativeCache, StageEntries
from .own_hooks import hooks_named
from .pipeline_timestep import PipelineTimestep, check_timestep_range
from .root_hook import kept_root_hook

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins import StepContext

# Denoisers whose input and output are video latents with the guidance branches in one batch, and the order of their
# axes. Others take packed tokens (LTX) or one branch a call (Wan), so uncond cannot be estimated.
LATENT_AXES = {"CogVideoXTransformer3DModel": "BFCHW", "MochiTransformer3DModel": "BCFHW"}
LOW_FREQUENCY_TIMESTEPS = (99, 901)
HIGH_FREQUENCY_TIMESTEPS = (-1, 301)


@dataclass(frozen=True, kw_only=True)
class FasterCache(NativeCache):
    """Reuse attention and the unconditional branch.

    diffusers' FasterCache on each denoiser.

    Args:
        attention_interval: attention is computed at one call in so many; 1 computes all.
        attention_timestep_range: (low, high), both excluded: the timesteps at which attention may be extrapolated, as
            the pipeline counts them (1000 is pure noise).
        attention_weight: how far, in steps: 0 gives the last output again.
        uncond_interval: uncond is computed at one call in so many; 1 computes all.
        uncond_timestep_range: (low, high), both excluded: the timesteps at which uncond may be estimated from cond.
        alpha_low_frequency: factor on the low frequencies of their difference at each estimate, at timesteps 100-900.
        alpha_high_frequency: likewise on the high frequencies, at timesteps up to 300.
        denoisers: letters of the denoisers it is put on; ``None`` for all of them.
        warmup_steps: steps that are always computed after a denoiser enters; at least 1, and 2 for there to
            be a change that can be extrapolated.
    """

    warmup_steps: int = 2
    attention_interval: int = 2
    attention_timestep_range: tuple[int, int] = (-1, 681)
    attention_weight: float = 0.5
    uncond_interval: int = 5
    uncond_timestep_range: tuple[int, int] = (-1, 641)
    alpha_low_frequency: float = 1.1
    alpha_high_frequency: float = 1.1

    name: ClassVar[str] = "faster_cache"
    page: ClassVar[str | None] = "docs/caches/faster_cache.md"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        tells_branches_apart=False,
        min_useful_steps=2,
        wraps="attention",
        denoiser_kinds=frozenset({"transformer"}),
    )
    suggested: ClassVar[tuple[str, ...]] = (
        "faster_cache",
        "faster_cache(attention_interval=3, attention_timestep_range=(-1, 901))",
    )
    skipped_outcome: ClassVar[str] = "predict"
    needs_registered_blocks: ClassVar[bool] = False
    needs_cache_contexts: ClassVar[bool] = False
    min_blocks: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps < 1:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}: expected at least 1, for there must be something to reuse"
            )
        for option in ("attention_interval", "uncond_interval"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option}={getattr(self, option)}: expected at least 1")
        for option in ("attention_weight", "alpha_low_frequency", "alpha_high_frequency"):
            if not 0.0 <= getattr(self, option) < math.inf:
                raise ValueError(f"{option}={getattr(self, option)}: expected a number from 0 up")
        check_timestep_range("attention_timestep_range", self.attention_timestep_range)
        check_timestep_range("uncond_timestep_range", self.uncond_timestep_range)

    def config_for(self, denoiser: Denoiser, letter: str, target: AttachTarget) -> object:
        from diffusers import FasterCacheConfig

        timestep = PipelineTimestep(self.name, letter, target)

        names = {module: name for name, module in denoiser.named_modules()}
        skipped: dict[StepContext | None, set[str]] = {}

        # diffusers asks for a weight when, and only when, it does not compute: that is what a call has done.
        def attention_weight(module: nn.Module) -> float:
            step = target.trace.step
            if step not in skipped:
                skipped.clear()  # of the call before
            skipped.setdefault(step, set()).add(names[module])
            target.trace.report_outcome("predict", frozenset(skipped[step]))
            return self.attention_weight

        def low_frequency_weight(module: nn.Module) -> float:
            target.trace.report_outcome("predict")  # of half a batch: what ran is no module by name
            return self.alpha_low_frequency if _is_within(timestep(), LOW_FREQUENCY_TIMESTEPS) else 1.0

        def high_frequency_weight(module: nn.Module) -> float:
            return self.alpha_high_frequency if _is_within(timestep(), HIGH_FREQUENCY_TIMESTEPS) else 1.0

        return FasterCacheConfig(
            spatial_attention_block_skip_range=self.attention_interval,
            temporal_attention_block_skip_range=self.attention_interval,
            spatial_attention_timestep_skip_range=self.attention_timestep_range,
            temporal_attention_timestep_skip_range=self.attention_timestep_range,
            unconditional_batch_skip_range=self.uncond_interval,
            unconditional_batch_timestep_skip_range=self.uncond_timestep_range,
            attention_weight_callback=attention_weight,
            low_frequency_weight_callback=low_frequency_weight,
            high_frequency_weight_callback=high_frequency_weight,
            tensor_format=_latent_axes(denoiser) or "BCFHW",
            is_guidance_distilled=True,  # until a call says that it guides
            current_timestep_callback=cast(Callable[[], int], timestep),
        )

    def observed_modules(self, denoiser: Denoiser) -> Sequence[nn.Module]:
        return ()  # the weights tell

    def steered(self, denoiser: Denoiser, config: Foreign) -> BeforeCall:
        from diffusers.hooks.faster_cache import _FASTER_CACHE_BLOCK_HOOK

        if not hooks_named(denoiser, _FASTER_CACHE_BLOCK_HOOK):
            raise StackError(
                f"{self.name!r} finds no attention that it knows in {type(denoiser).__name__}, so it would do nothing. "
                f"Leave out {self.name!r}."
            )
        return config.current_timestep_callback.before_call

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[_GenerationStart]:
        chosen = choose_denoisers(self.name, self.denoisers, target).values()
        with super().attach(target) as stages, contextlib.ExitStack() as undo:
            yield _GenerationStart(
                cast(StageEntries, stages), [undo.enter_context(_estimating(denoiser)) for denoiser in chosen]
            )


class _GenerationStart:
    """Takes part in the blend to tell the cache whether a generation guides, which no config can know before."""

    def __init__(self, stages: StageEntries, denoisers: Sequence[Callable[[bool], None]]) -> None:
        self._stages = stages
        self._denoisers = denoisers

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext) -> None:
        self._stages.flowblend_stage_entered(step)

    @hookimpl(trylast=True)  # what others say of guidance counts
    def flowblend_configure_generation(self, pipeline: Pipeline, call_arguments: Keywords) -> None:
        for start in self._denoisers:
            start(bool(is_guided(pipeline, call_arguments)))


@contextlib.contextmanager
def _estimating(denoiser: Denoiser) -> Iterator[Callable[[bool], None]]:
    """Gives the function that is told, when a generation begins, whether it guides."""
    from diffusers.hooks.faster_cache import _FASTER_CACHE_BLOCK_HOOK, _FASTER_CACHE_DENOISER_HOOK

    (root,) = hooks_named(denoiser, _FASTER_CACHE_DENOISER_HOOK)
    hooks = [root, *hooks_named(denoiser, _FASTER_CACHE_BLOCK_HOOK)]
    with kept_root_hook(denoiser, root) as put_back:

        def start(guides: bool) -> None:
            put_back()
            for hook in hooks:
                hook.is_guidance_distilled = not (guides and _latent_axes(denoiser))

        yield start


def _latent_axes(denoiser: Denoiser) -> str | None:
    names = (cls.__name__ for cls in type(denoiser).__mro__)
    return next((LATENT_AXES[name] for name in names if name in LATENT_AXES), None)


def _is_within(timestep: float, timesteps: tuple[int, int]) -> bool:
    return timesteps[0] < timestep < timesteps[1]
