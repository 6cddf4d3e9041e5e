"""SeaCache (arXiv 2602.18993): steps are reused while the video, filtered to what its noise level shows, stays alike.

The implementation is diffusers' (``diffusers.hooks.sea_cache``), which needs the step, sigma and number of steps in the
cache context. Pipelines that leave them out (LTX) get them from the router. It needs the video latents too: Wan hands
them to the denoiser as they are, LTX as a row of tokens, which is laid out again here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flowblend_plugins import AdapterTraits, AttachTarget, Family
from flowblend_plugins.types import Args, Denoiser, Foreign, Keywords, Output, Pipeline

from .native_cache import BeforeCall, NativeCache, StageEntries, transformer_blocks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flowblend_plugins import Outcome, StepContext


@dataclass(frozen=True, kw_only=True)
class SeaCache(NativeCache):
    """Reuse features as diffusers' SeaCache decides.

    diffusers' SeaCache on each denoiser.

    Args:
        threshold: accumulated relative change of the filtered video from which a step is computed.
        residual_order: 0 reuses the last residual of the blocks, 1 extends the line through the last two.
        cooldown_steps: steps at the end of a generation that are always computed.
        max_skip_steps: steps that may be reused in a row; 0 sets no limit.
        power_exp: exponent of the spectrum that clean video is taken to have.
        denoisers: letters of the denoisers it is put on; ``None`` for all of them.
        warmup_steps: steps that are always computed after a denoiser enters; its first one always is.
    """

    threshold: float = 0.25
    residual_order: int = 1
    cooldown_steps: int = 1
    max_skip_steps: int = 2
    power_exp: float = 3.0

    observes_all_it_skips: ClassVar[bool] = True
    name: ClassVar[str] = "sea_cache"
    page: ClassVar[str | None] = "docs/caches/sea_cache.md"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        min_useful_steps=3,
        wraps="blocks",
        denoiser_kinds=frozenset({"transformer"}),
        denoiser_classes=frozenset({"WanTransformer3DModel", "LTXVideoTransformer3DModel"}),
    )
    suggested: ClassVar[tuple[str, ...]] = ("sea_cache(threshold=0.1)", "sea_cache(threshold=0.25)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.threshold < float("inf"):
            raise ValueError(f"threshold={self.threshold}: expected a number from 0 up")
        if self.residual_order not in (0, 1):
            raise ValueError(f"residual_order={self.residual_order}: expected 0 or 1")
        for option in ("cooldown_steps", "max_skip_steps"):
            if getattr(self, option) < 0:
                raise ValueError(f"{option}={getattr(self, option)}: expected at least 0")
        if not 0.0 < self.power_exp < float("inf"):
            raise ValueError(f"power_exp={self.power_exp}: expected a number above 0")

    def observed_modules(self, denoiser: Denoiser) -> Sequence[nn.Module]:
        return transformer_blocks(denoiser)

    def config_for(self, denoiser: Denoiser, letter: str, target: AttachTarget) -> object:
        from diffusers import SeaCacheConfig

        return SeaCacheConfig(
            threshold=self.threshold,
            residual_order=self.residual_order,
            retention_steps=0,  # the warm-up is counted from where the denoiser enters, by `steered`
            cache_end_steps=self.cooldown_steps,
            max_consecutive_cached=self.max_skip_steps,
            power_exp=self.power_exp,
            raw_vision_callback=video_latents,
        )

    def steered(self, denoiser: Denoiser, config: Foreign) -> BeforeCall:
        def before_call(step: StepContext, is_warming_up: bool) -> None:
            config.threshold = 0.0 if is_warming_up else self.threshold  # at or above it, a step is computed

        return before_call

    def outcome_of_skip(self, denoiser: Denoiser) -> Outcome:
        states = _root_hook(denoiser).state_manager
        return "predict" if self.residual_order == 1 and len(states.get_state().history) == 2 else "reuse"

    @contextlib.contextmanager
    def _on(self, denoiser: Denoiser, letter: str, target: AttachTarget, stages: StageEntries) -> Iterator[None]:
        with super()._on(denoiser, letter, target, stages), _root_hook_beside_forward(denoiser):
            yield

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        yield from super().obstacles(pipe)
        if type(pipe).__name__ == "LTXConditionPipeline":
            yield (
                "LTXConditionPipeline does not tell the denoiser the size of the video, by which to lay its tokens out",
                "Use 'first_block_cache' instead.",
            )
        sampler = getattr(pipe, "scheduler", None)
        if sampler is not None and "beta_start" in sampler.config and not sampler.config.get("use_flow_sigmas"):
            yield (
                f"it needs a flow-matching sampler, with sigmas from 0 to 1, and {type(sampler).__name__} samples by "
                "variance",
                "Use 'first_block_cache' instead.",
            )


def video_latents(denoiser: Denoiser, args: Args, kwargs: Keywords) -> list[torch.Tensor] | None:
    """The latents ``[C, F, H, W]`` of each video of a denoiser call; ``None`` if its inputs do not say.

    Wan takes ``[B, C, F, H, W]`` (what image-to-video adds in further channels is no part of it), LTX takes
    tokens ``[B, F * H * W, C]`` and their extents.
    """
    latents = kwargs.get("hidden_states", args[0] if args else None)
    if latents is None:
        return None
    if latents.ndim == 5:
        return list(latents[:, : denoiser.config["out_channels"]].unbind(0))  # type: ignore[index]
    extents = [kwargs.get(name) for name in ("num_frames", "height", "width")]
    if latents.ndim != 3 or None in extents or latents.shape[1] != extents[0] * extents[1] * extents[2]:  # type: ignore[operator]
        return None
    return list(latents.transpose(1, 2).unflatten(2, extents).unbind(0))  # type: ignore[arg-type]


def _root_hook(denoiser: Denoiser) -> Foreign:
    from diffusers.hooks.sea_cache import _SEA_CACHE_ROOT_HOOK

    return denoiser._diffusers_hook.get_hook(_SEA_CACHE_ROOT_HOOK)


@contextlib.contextmanager
def _root_hook_beside_forward(denoiser: Denoiser) -> Iterator[None]:
    """Let torch call SeaCache's root hook, which only looks at inputs before and at nothing after.

    diffusers wraps it around ``forward``, where it is lost when model offloading replaces ``forward`` after a
    generation; the cache would then silently compute every step.
    """
    root = _root_hook(denoiser)

    def before(module: nn.Module, args: Args, kwargs: Keywords) -> None:
        root.pre_forward(module, *args, **kwargs)

    def after(module: nn.Module, args: object, output: Output) -> None:
        root.post_forward(module, output)

    denoiser.forward = root.fn_ref.forward
    handles = [denoiser.register_forward_pre_hook(before, with_kwargs=True), denoiser.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        root.fn_ref.forward = denoiser.forward  # what disable_cache() puts back is what is there now
