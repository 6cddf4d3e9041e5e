"""TaylorSeer under FlowBlending against diffusers' own on a plain pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import TaylorSeerCacheConfig

import flowblend_plugins as fb
from flowblend_plugins.testing import PipelineSnapshot, generate, tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.feature_caching.native_cache_contract import (
    NativeCacheContract,
    OnLTX,
    OnWan,
    blocks_of,
    small_wan,
)
from tests.exactness.pipelines import FAMILIES, VIDEO_TO_VIDEO, Family
from tests.trace.test_flops import RealCount


class TaylorSeerContract(NativeCacheContract):
    spec = "taylorseer(cache_interval=3, factors_dtype='float32')"
    never_spec = "taylorseer(cache_interval=1)"
    skipped_outcome = "predict"
    wrong_specs = (
        "taylorseer(cache_interval=0)",
        "taylorseer(max_order=0)",
        "taylorseer(max_order=3)",
        "taylorseer(warmup_steps=1)",
        "taylorseer(denoisers='l')",
        "taylorseer(factors_dtype='float8')",
        "taylorseer(identifiers='(')",
        "taylorseer(is_lite=True, identifiers='blocks')",
        "taylorseer(interval=3)",
    )

    def config(self) -> Any:
        return TaylorSeerCacheConfig(
            cache_interval=3,
            disable_cache_before_step=3,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"(transformer_)?blocks\.\d+\.attn[12]"],
        )

    def probe_module(self, denoiser: Any) -> torch.nn.Module:
        return blocks_of(denoiser)[-1].attn2.to_q


class TestTaylorSeerOnWan(OnWan, TaylorSeerContract):
    pass


class TestTaylorSeerOnLTX(OnLTX, TaylorSeerContract):
    pass


class LiteContract(NativeCacheContract):
    spec = "taylorseer(is_lite=True, cache_interval=3)"
    never_spec = "taylorseer(is_lite=True, cache_interval=1)"
    skipped_outcome = "predict"
    wrong_specs = ("taylorseer(is_lite=1)",)

    def config(self) -> Any:
        return TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=3, use_lite_mode=True)


class TestLiteOnWan(OnWan, LiteContract):
    pass


class TestLiteOnLTX(OnLTX, LiteContract):
    pass


@pytest.mark.parametrize("family", [FAMILIES["wan"], FAMILIES["ltx"]], ids=lambda family: family.name)
def test_the_identifiers_that_diffusers_has_by_default_fit_no_module_and_ours_do(family: Family) -> None:
    pipe, plain = family.pipe(), family.pipe()
    plain.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1))
    assert torch.equal(family.run(plain), family.run(pipe))
    with fb.enable(pipe, schedule="LLL", adapters=["taylorseer(cache_interval=3)"]):
        hooked = {name for name, m in pipe.transformer.named_modules() if name and hasattr(m, "_diffusers_hook")}
    blocks = "blocks" if family.name == "wan" else "transformer_blocks"
    assert hooked == {f"{blocks}.{block}.attn{attention}" for block in (0, 1) for attention in (1, 2)}


@pytest.mark.parametrize("name", ["wan-i2v", "ltx2", "cogvideox", "mochi"])
def test_on_other_pipelines_it_is_the_cache_by_hand(name: str) -> None:
    family = FAMILIES[name]
    plain, pipe = family.pipe(), family.pipe()
    plain.transformer.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=2, cache_identifiers=[r".*blocks\.\d+\.attn\d?"]
        )
    )
    with fb.enable(
        pipe, family.make_small(), "LLL", adapters=["taylorseer(cache_interval=2, warmup_steps=2)"]
    ) as blend:
        assert torch.equal(family.run(pipe, 5), family.run(plain, 5))
        assert blend.trace.generations[0].num_forwards("L", "predict") == len(blend.trace.generations[0].calls) * 2 // 5


@pytest.mark.parametrize("order", [1, 2])
def test_a_stage_starts_with_the_history_that_its_series_needs(order: int) -> None:
    """The first forecast of every stage extrapolates the outputs that this stage computed, and nothing older."""
    pipe = tiny_wan_pipeline()
    spec = f"taylorseer(warmup_steps={order + 1}, max_order={order}, factors_dtype='float32', denoisers='L')"
    outputs: list[torch.Tensor] = []
    with fb.enable(pipe, small_wan(), "L:4,S:2,L:4", adapters=[spec]) as blend:
        attention = blocks_of(pipe.transformer)[0].attn1
        handle = attention.register_forward_hook(lambda module, args, output: outputs.append(output))
        generate(pipe, guidance_scale=1.0)
        handle.remove()
    after = [call.outcome for call in blend.trace.generations[0].calls[6:]]
    assert after[: order + 2] == ["compute"] * (order + 1) + ["predict"]
    computed = outputs[4 : 4 + order + 1]
    last, change = computed[-1], computed[-1] - computed[-2]
    expected = last + change
    if order == 2:
        expected = expected + (change - (computed[-2] - computed[-3])) / 2
    torch.testing.assert_close(outputs[4 + order + 1], expected, rtol=1e-4, atol=1e-5)


def test_where_state_is_kept_the_warm_up_is_still_computed() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, small_wan(), "L:5,S:1,L:4", adapters=["taylorseer"], reentry="keep") as blend:
        generate(pipe, guidance_scale=1.0)
        outcomes = [call.outcome for call in blend.trace.generations[0].calls]
    assert outcomes == ["compute"] * 3 + ["predict", "compute"] + ["compute"] + ["compute"] * 3 + ["predict"]


@pytest.mark.parametrize("spec", ["taylorseer(cache_interval=3)", "taylorseer(is_lite=True)"])
def test_the_flops_are_those_of_what_ran(spec: str) -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, small_wan(), "L:5,S:5", adapters=[spec]) as blend:
        real = RealCount(list(blend.denoisers.values()))
        with real.running():
            generate(pipe)
        flops = blend.trace.flops()
        assert blend.trace.generations[0].num_forwards("S", "predict") > 0
    assert flops.full == real.total


def refusal(pipe: Any, small: Any, adapter: str) -> str:
    before = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.StackError) as refused:
        fb.enable(pipe, small, "LSL", adapters=[adapter])
    assert before.differences(pipe) == []
    return str(refused.value)


def test_identifiers_that_fit_no_module_are_refused_with_a_name_to_go_by() -> None:
    message = refusal(tiny_wan_pipeline(), tiny_wan_denoiser(), "taylorseer(identifiers='blocks.*attention')")
    assert "identifiers='blocks.*attention' fits no module of WanTransformer3DModel" in message
    assert "in the first block are blocks.0.norm1, blocks.0.attn1, blocks.0.attn2" in message


def test_a_pipeline_without_cache_contexts_is_refused() -> None:
    message = refusal(VIDEO_TO_VIDEO.pipe(), VIDEO_TO_VIDEO.make_small(), "taylorseer")
    assert "opens no cache context" in message


def test_an_unknown_letter_is_refused_with_those_there_are() -> None:
    message = refusal(tiny_wan_pipeline(), tiny_wan_denoiser(), "taylorseer(denoisers='M')")
    assert "names M, and the denoisers of this blend are L, S" in message


def test_with_a_second_cache_it_is_refused() -> None:
    with pytest.raises(fb.StackError, match="'taylorseer' and 'first_block_cache' are two feature caches"):
        fb.enable(tiny_wan_pipeline(), small_wan(), "LSL", adapters=["taylorseer", "first_block_cache"])
