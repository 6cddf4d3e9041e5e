"""FirstBlockCache under FlowBlending against diffusers' own on a plain pipeline."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import FirstBlockCacheConfig

import flowblend_plugins as fb
from flowblend_plugins.testing import PipelineSnapshot, generate, tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.feature_caching.native_cache_contract import NativeCacheContract, OnLTX, OnWan
from tests.exactness.pipelines import FAMILIES, VIDEO_TO_VIDEO

WRONG = ("first_block_cache(threshold=-0.1)", "first_block_cache(threshold='a')", "first_block_cache(limit=1)")
WRONG_STAGES = ("first_block_cache(denoisers='l')", "first_block_cache(warmup_steps=-1)")


class FirstBlockCacheContract(NativeCacheContract):
    spec = "first_block_cache(threshold=0.5)"
    never_spec = "first_block_cache(threshold=0.0)"
    wrong_specs = WRONG + WRONG_STAGES

    def config(self) -> Any:
        return FirstBlockCacheConfig(threshold=0.5)


class TestFirstBlockCacheOnWan(OnWan, FirstBlockCacheContract):
    pass


class TestFirstBlockCacheOnLTX(OnLTX, FirstBlockCacheContract):
    pass


def refusal(pipe: Any, small: Any, adapter: str = "first_block_cache") -> str:
    before = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.StackError) as refused:
        fb.enable(pipe, small, "LSL", adapters=[adapter])
    assert before.differences(pipe) == []
    return str(refused.value)


def test_an_unknown_letter_is_refused_with_those_there_are() -> None:
    message = refusal(tiny_wan_pipeline(), tiny_wan_denoiser(layers=2), "first_block_cache(denoisers='LM')")
    assert "names M, and the denoisers of this blend are L, S" in message


def test_a_denoiser_with_a_single_block_is_refused() -> None:
    message = refusal(tiny_wan_pipeline(), tiny_wan_denoiser(layers=1))
    assert "denoiser S: the WanTransformer3DModel has 1 transformer block, and this cache needs 2" in message


def test_a_pipeline_without_cache_contexts_is_refused() -> None:
    assert "opens no cache context" in refusal(VIDEO_TO_VIDEO.pipe(), VIDEO_TO_VIDEO.make_small())


def test_a_denoiser_whose_blocks_diffusers_does_not_know_is_refused_with_what_to_use() -> None:
    family = FAMILIES["ltx2"]
    message = refusal(family.pipe(), family.make_small())
    assert "LTX2VideoTransformer3DModel" in message
    assert "'cache_dit'" in message


def test_the_trace_names_the_blocks_that_did_not_run_and_counts_the_others() -> None:
    pipe, deep = tiny_wan_pipeline(), tiny_wan_denoiser(layers=4, heads=2)
    pipe.register_modules(transformer=deep)
    with fb.enable(pipe, schedule="LLL", adapters=["first_block_cache(threshold=1e6)"]) as blend:
        generate(pipe, 2, guidance_scale=1.0)
        assert blend.trace.last is not None
        computed, reused = blend.trace.last.calls
        spent = blend.trace.flops()
    assert computed.skipped == frozenset()
    assert reused.skipped == {"blocks.1", "blocks.2", "blocks.3"}
    with fb.enable(pipe, schedule="LLL") as blend:
        generate(pipe, 1, guidance_scale=1.0)
        whole = blend.trace.flops()
    pipe.register_modules(transformer=tiny_wan_denoiser(layers=1, heads=2))
    with fb.enable(pipe, schedule="LLL") as blend:
        generate(pipe, 1, guidance_scale=1.0)
        one_block = blend.trace.flops()
    assert spent.full == whole.full + one_block.full
