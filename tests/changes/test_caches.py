"""A cache that is switched on, changed or taken off after ``enable()``: adopted or refused as when it comes first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    WanTransformer3DModel,
)

import flowblend_plugins as fb
from flowblend_plugins.testing import PipelineSnapshot, generate, tiny_ltx_pipeline, tiny_wan_pipeline
from tests.adapters.feature_caching.native_cache_contract import ROUND_TRIP, small_wan
from tests.adapters.feature_caching.teacache_by_hand import patched

SwitchOn = Callable[[Any], object]


def magcache(pipe: Any) -> None:
    ratios = [1.0, *[9.0] * 5, *[1.0] * 4]
    pipe.transformer.enable_cache(
        MagCacheConfig(threshold=0.3, retention_ratio=0.0, num_inference_steps=10, mag_ratios=ratios)
    )


def faster_cache(pipe: Any) -> None:
    pipe.transformer.enable_cache(
        FasterCacheConfig(
            is_guidance_distilled=True,
            spatial_attention_timestep_skip_range=(-1, 970),
            current_timestep_callback=lambda: pipe.current_timestep,
        )
    )


def cache_dit_on(pipe: Any, whole: bool) -> None:
    cache_dit = pytest.importorskip("cache_dit")
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=10.0, max_warmup_steps=0
    )
    cache_dit.enable_cache(pipe if whole else pipe.transformer, cache_config=config)


@contextlib.contextmanager
def switched_on(cache: str, pipe: Any) -> Iterator[None]:
    """One of the caches on a pipeline, and off every class it was put on afterwards."""
    if cache == "teacache, class of the object":
        _, forward, attributes = patched("wan", 0.5, 10, False)
        original = WanTransformer3DModel.forward
        kind = pipe.transformer.__class__
        kind.forward = forward
        for name, value in attributes.items():
            setattr(kind, name, value)
        try:
            yield
        finally:
            WanTransformer3DModel.forward = original  # type: ignore[method-assign]
            for name in attributes:
                if name in vars(WanTransformer3DModel):
                    delattr(WanTransformer3DModel, name)
        return
    if cache == "teacache, instance":
        _, forward, attributes = patched("wan", 0.5, 10, False)
        pipe.transformer.forward = forward.__get__(pipe.transformer)
        for name, value in attributes.items():
            setattr(pipe.transformer, name, value)
        yield
        return
    switch_on: dict[str, SwitchOn] = {
        "first block": lambda pipe: pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5)),
        "magcache": magcache,
        "faster cache": faster_cache,
        "cache-dit on the denoiser": lambda pipe: cache_dit_on(pipe, whole=False),
    }
    switch_on[cache](pipe)
    yield


CACHES = {
    "first block": "adopted_diffusers_cache",
    "magcache": "adopted_diffusers_cache",
    "faster cache": "adopted_diffusers_cache",
    "cache-dit on the denoiser": "adopted_cache_dit",
    "teacache, class of the object": "adopted_teacache",
    "teacache, instance": "adopted_teacache",
}


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_that_comes_after_enable_is_as_when_it_comes_first(cache: str) -> None:
    guidance = 1.0 if cache == "faster cache" else 5.0
    first, then = tiny_wan_pipeline(), tiny_wan_pipeline()
    with switched_on(cache, first), fb.enable(first, small_wan(), ROUND_TRIP):
        expected = generate(first, guidance_scale=guidance)
    with fb.enable(then, small_wan(), ROUND_TRIP) as blend:
        plain_blend = generate(then, guidance_scale=guidance)
        with switched_on(cache, then):
            result = generate(then, guidance_scale=guidance)
            assert torch.equal(result, expected)
            assert torch.equal(generate(then, guidance_scale=guidance), expected)
            assert [adapter.name for adapter in blend.adapters] == [CACHES[cache]]
        assert not torch.equal(result, plain_blend)


def test_the_cache_stays_when_the_blend_goes() -> None:
    alone, pipe = tiny_wan_pipeline(), tiny_wan_pipeline()
    magcache(alone)
    expected = generate(alone)
    with fb.enable(pipe, small_wan(), ROUND_TRIP):
        generate(pipe)
        magcache(pipe)
        generate(pipe)
    assert torch.equal(generate(pipe), expected)
    pipe.transformer.disable_cache()
    assert torch.equal(generate(pipe), generate(tiny_wan_pipeline()))


def test_a_class_patch_lands_on_the_class_that_it_was_meant_for() -> None:
    pipe = tiny_wan_pipeline()
    with switched_on("teacache, class of the object", tiny_wan_pipeline()):
        expected = generate(pipe)
    with contextlib.ExitStack() as undo:
        with fb.enable(pipe, small_wan(), ROUND_TRIP):
            generate(pipe)
            undo.enter_context(switched_on("teacache, class of the object", pipe))
            generate(pipe)
        pipe.transformer.__class__.cnt = 0
        assert torch.equal(generate(pipe), expected)


def test_cache_dit_through_the_pipeline_is_fresh_in_every_generation() -> None:
    first, then = tiny_ltx_pipeline(), tiny_ltx_pipeline()
    from flowblend_plugins.testing import tiny_ltx_denoiser

    cache_dit = pytest.importorskip("cache_dit")
    plain_call = type(then).__call__
    try:
        cache_dit_on(first, whole=True)
        with fb.enable(first, tiny_ltx_denoiser(layers=2), ROUND_TRIP):
            expected = generate(first)
        cache_dit.disable_cache(first)
        assert type(then).__call__ is plain_call
        with fb.enable(then, tiny_ltx_denoiser(layers=2), ROUND_TRIP) as blend:
            generate(then)
            cache_dit_on(then, whole=True)
            assert torch.equal(generate(then), expected)
            assert torch.equal(generate(then), expected)
            assert [adapter.name for adapter in blend.adapters] == ["adopted_cache_dit"]
        cache_dit.disable_cache(then)
        assert torch.equal(generate(then), generate(tiny_ltx_pipeline()))
    finally:
        type(then).__call__ = plain_call


def test_guided_pyramid_attention_broadcast_is_refused_until_it_is_taken_off() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, small_wan(), ROUND_TRIP) as blend:
        blended = generate(pipe)
        pipe.transformer.enable_cache(
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(-1, 900),
                current_timestep_callback=lambda: pipe.current_timestep,
            )
        )
        for _ in range(2):
            with pytest.raises(fb.StackError, match="keeps one state for both guidance branches"):
                generate(pipe)
        assert generate(pipe, guidance_scale=1.0).isfinite().all()
        pipe.transformer.disable_cache()
        assert torch.equal(generate(pipe), blended)
        assert blend.adapters == ()


def test_a_cache_beside_one_that_was_asked_for_is_refused_until_it_is_taken_off() -> None:
    pipe = tiny_wan_pipeline()
    before = PipelineSnapshot.of(pipe)
    with fb.enable(pipe, small_wan(), ROUND_TRIP, adapters=["cache_dit(threshold=10.0)"]) as blend:
        blended = generate(pipe)
        magcache(pipe)
        for _ in range(2):
            with pytest.raises(fb.StackError, match="'adopted_diffusers_cache' and 'cache_dit'"):
                generate(pipe)
        assert blend.is_enabled
        pipe.transformer.disable_cache()
        assert torch.equal(generate(pipe), blended)
        magcache(pipe)
        with pytest.raises(fb.StackError):
            generate(pipe)
        pipe.transformer.disable_cache()
        for block in pipe.transformer.blocks:  # nothing of ours was left beneath the user's hooks
            assert block.forward.__func__ is type(block).forward
        magcache(pipe)
    pipe.transformer.disable_cache()
    after = generate(pipe)
    assert torch.equal(after, generate(tiny_wan_pipeline()))
    assert not [d for d in before.differences(pipe) if "tensor" in d or "class" in d]


def test_another_config_of_an_adopted_cache_is_the_one_in_force() -> None:
    pipe, twin = tiny_wan_pipeline(), tiny_wan_pipeline()
    twin.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.9))
    with fb.enable(twin, small_wan(), ROUND_TRIP):
        expected = generate(twin)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.01))
    with fb.enable(pipe, small_wan(), ROUND_TRIP) as blend:
        assert not torch.equal(generate(pipe), expected)
        pipe.transformer.disable_cache()
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.9))
        assert torch.equal(generate(pipe), expected)
        assert blend.trace.generations[-1].num_forwards("L", "reuse") > 0
