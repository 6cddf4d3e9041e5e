"""Caches enabled through ``enable_cache`` before FlowBlending: recognised, observed, mirrored, and left as found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)

import flowblend_plugins as fb
from flowblend_plugins.testing import PipelineSnapshot, generate, tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.feature_caching.native_cache_contract import ROUND_TRIP, small_wan

CACHES: dict[str, Callable[[], Any]] = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.5),
    "magnitude": lambda: MagCacheConfig(threshold=0.3, num_inference_steps=10, mag_ratios=[1.05] * 10),
    "sea": lambda: SeaCacheConfig(threshold=1.0, residual_order=0),
    "taylor": lambda: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, cache_identifiers=[r".*blocks\.\d+\.attn[12]"]
    ),
}
SKIPPED = {
    "first block": frozenset({"blocks.1"}),
    "magnitude": frozenset({"blocks.0", "blocks.1"}),
    "sea": frozenset({"blocks.0", "blocks.1"}),
    "taylor": frozenset({"blocks.0.attn1", "blocks.0.attn2", "blocks.1.attn1", "blocks.1.attn2"}),
}
every_cache = pytest.mark.parametrize("cache", CACHES)


def cached_pipe(cache: str) -> Any:
    pipe = tiny_wan_pipeline()
    pipe.transformer.enable_cache(CACHES[cache]())
    return pipe


@every_cache
def test_it_joins_the_stack_and_its_calls_are_observed(cache: str) -> None:
    pipe = cached_pipe(cache)
    alone = generate(pipe)
    config = pipe.transformer._cache_config
    inner = pipe.transformer.blocks[-1].attn1.to_q
    with fb.enable(pipe, small_wan(), "LLL") as blend:
        assert [adapter.name for adapter in blend.adapters] == ["adopted_diffusers_cache"]
        ran: list[bool] = []
        before = pipe.transformer.register_forward_pre_hook(lambda *_: ran.append(False))
        inside = inner.register_forward_hook(lambda *_: ran.__setitem__(-1, True))
        assert torch.equal(generate(pipe), alone)
        before.remove()
        inside.remove()
        assert blend.trace.last is not None
        outcomes = [call.outcome for call in blend.trace.last.calls]
        assert [outcome == "compute" for outcome in outcomes] == ran
        assert set(outcomes) == {"compute", "predict" if cache == "taylor" else "reuse"}
        names = {call.skipped for call in blend.trace.last.calls if call.outcome != "compute"}
        assert names == {SKIPPED[cache]}
    assert pipe.transformer._cache_config is config
    assert torch.equal(generate(pipe), alone)


@every_cache
@pytest.mark.parametrize("mirror", [False, True])
def test_it_is_left_as_it_was_found(cache: str, mirror: bool) -> None:
    pipe, small = cached_pipe(cache), small_wan()
    generate(pipe)

    def state() -> list[Any]:
        hooks = [m.__dict__.get("_diffusers_hook") for d in (pipe.transformer, small) for m in d.modules()]
        return [
            PipelineSnapshot.of(pipe).facts,
            [dict(module.__dict__).keys() for module in small.modules()],
            [(id(h), [*h.hooks], [id(f.original_forward) for f in h._fn_refs]) for h in hooks if h is not None],
        ]

    originals = [m.__dict__.get("_diffusers_hook") for m in pipe.transformer.modules()]
    held = [f.original_forward for h in originals if h is not None for f in h._fn_refs]  # so that no id is used twice
    before = state()
    with fb.enable(pipe, small, ROUND_TRIP, adapters=[f"adopted_diffusers_cache(mirror={mirror})"]) as blend:
        assert len(blend.adapters) == 1
        generate(pipe)
        assert small.is_cache_enabled is mirror
        assert blend.trace.last is not None
        small_calls = [call.outcome for call in blend.trace.last.calls if call.step.denoiser == "S"]
        assert (set(small_calls) != {"compute"}) is mirror
    assert state() == before
    assert held


def test_a_mirrored_cache_is_the_same_as_one_asked_for() -> None:
    asked, adopted = tiny_wan_pipeline(), cached_pipe("first block")
    with fb.enable(asked, small_wan(), ROUND_TRIP, adapters=["first_block_cache(threshold=0.5)"]):
        expected = generate(asked)
    with fb.enable(adopted, small_wan(), ROUND_TRIP, adapters=["adopted_diffusers_cache(mirror=True)"]):
        assert torch.equal(generate(adopted), expected)
        assert torch.equal(generate(adopted), expected)


def test_the_count_of_magcache_follows_the_true_step() -> None:
    """Ratios that forbid reuse in steps 1 to 6 and allow it later; the large denoiser enters at step 4."""
    pipe = tiny_wan_pipeline()
    ratios = [1.0, *[9.0] * 5, *[1.0] * 4]
    pipe.transformer.enable_cache(MagCacheConfig(retention_ratio=0.0, num_inference_steps=10, mag_ratios=ratios))
    with fb.enable(pipe, small_wan(), "S:4,L:6") as blend:
        generate(pipe)
        assert blend.trace.last is not None
        reused = {call.step.step_index for call in blend.trace.last.calls if call.outcome == "reuse"}
    assert reused == {6, 7, 8}


def test_a_cache_that_the_user_takes_off_meanwhile_stays_off() -> None:
    pipe = cached_pipe("first block")
    with fb.enable(pipe, small_wan(), "LLL"):
        generate(pipe)
        pipe.transformer.disable_cache()
        expected = generate(pipe)
    assert torch.equal(expected, generate(tiny_wan_pipeline()))
    assert torch.equal(generate(pipe), expected)
    for block in pipe.transformer.blocks:
        assert block.forward.__func__ is type(block).forward


def refusal(pipe: Any, small: Any, *adapters: str) -> str:
    with pytest.raises(fb.StackError) as refused:
        fb.enable(pipe, small, "LSL", adapters=adapters)
    return str(refused.value)


def test_a_second_cache_beside_it_is_refused() -> None:
    message = refusal(cached_pipe("first block"), small_wan(), "sea_cache")
    assert "'adopted_diffusers_cache' and 'sea_cache'" in message


def test_naming_it_where_there_is_none_is_refused() -> None:
    assert "no cache is enabled on the denoiser" in refusal(tiny_wan_pipeline(), small_wan(), "adopted_diffusers_cache")


def test_a_mirror_that_cannot_be_is_refused() -> None:
    pipe = cached_pipe("first block")
    message = refusal(pipe, tiny_wan_denoiser(layers=1), "adopted_diffusers_cache(mirror=True)")
    assert "cannot put FirstBlockCacheConfig on denoiser S" in message
    assert pipe.transformer.is_cache_enabled


@pytest.mark.parametrize("kind", [PyramidAttentionBroadcastConfig, FasterCacheConfig])
def test_a_cache_that_would_mix_the_branches_is_refused_where_there_are_two(kind: Any) -> None:
    pipe = tiny_wan_pipeline()
    # FasterCache needs two computed steps before it may skip.
    common: dict[str, Any] = {"spatial_attention_timestep_skip_range": (-1, 900)}
    common["current_timestep_callback"] = lambda: pipe.current_timestep
    if kind is FasterCacheConfig:
        common |= {"is_guidance_distilled": True}
    pipe.transformer.enable_cache(kind(spatial_attention_block_skip_range=2, **common))
    with fb.enable(pipe, small_wan(), "LLL") as blend:
        with pytest.raises(fb.StackError, match="keeps one state for both guidance branches"):
            generate(pipe)
        generate(pipe, guidance_scale=1.0)
        assert blend.trace.last is not None
        assert {call.outcome for call in blend.trace.last.calls} != {"compute"}


def test_faster_cache_does_not_crash_where_a_denoiser_enters_within_its_range() -> None:
    pipe = tiny_wan_pipeline()

    def timestep() -> int:
        return pipe.current_timestep

    pipe.transformer.enable_cache(
        FasterCacheConfig(
            is_guidance_distilled=True,
            spatial_attention_timestep_skip_range=(-1, 970),  # the first of ten timesteps is above
            current_timestep_callback=timestep,
        )
    )
    alone = generate(pipe, guidance_scale=1.0)
    with fb.enable(pipe, small_wan(), "LLL"):
        assert torch.equal(generate(pipe, guidance_scale=1.0), alone)
    with fb.enable(pipe, small_wan(), "L:3,S:3,L:4", adapters=["adopted_diffusers_cache(mirror=True)"]) as blend:
        first = generate(pipe, guidance_scale=1.0)
        assert torch.equal(generate(pipe, guidance_scale=1.0), first)
        outcomes = [call.outcome for call in blend.trace.generations[0].calls]
    assert outcomes == ["compute", "predict", "compute"] + ["compute"] * 3 + ["compute"] * 3 + ["predict"]
    hook = pipe.transformer.blocks[0].attn1._diffusers_hook.get_hook("faster_cache_block")
    assert hook.current_timestep_callback is timestep
    assert torch.equal(generate(pipe, guidance_scale=1.0), alone)
