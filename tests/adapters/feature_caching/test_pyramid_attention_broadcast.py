"""Pyramid Attention Broadcast under FlowBlending against diffusers' own on a plain pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig

import flowblend_plugins as fb
from flowblend_plugins.testing import (
    PipelineSnapshot,
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from tests.adapters.feature_caching.branches_alone import largest_change, rows
from tests.adapters.feature_caching.native_cache_contract import (
    NativeCacheContract,
    blocks_of,
    recorded,
    small_ltx,
    small_wan,
)
from tests.exactness.pipelines import FAMILIES, VIDEO_TO_VIDEO, Family
from tests.trace.test_flops import RealCount

EVERYWHERE = (-1, 1001)


def config(timestep: Any, timesteps: tuple[int, int] = EVERYWHERE, **intervals: int) -> Any:
    ranges = dict.fromkeys(
        (f"{kind}_attention_timestep_skip_range" for kind in ("spatial", "temporal", "cross")), timesteps
    )
    skips = {f"{kind}_attention_block_skip_range": n for kind, n in (intervals or {"spatial": 2}).items()}
    return PyramidAttentionBroadcastConfig(**skips, **ranges, current_timestep_callback=timestep)  # type: ignore[arg-type]


class PyramidContract(NativeCacheContract):
    spec = "pyramid_attention_broadcast(timestep_range=(200, 950))"
    never_spec = "pyramid_attention_broadcast(spatial_interval=1, timestep_range=(-1, 1001))"
    wrong_specs = (
        "pyramid_attention_broadcast(spatial_interval=0)",
        "pyramid_attention_broadcast(spatial_interval=None)",
        "pyramid_attention_broadcast(cross_interval=2.0)",
        "pyramid_attention_broadcast(timestep_range=(800, 100))",
        "pyramid_attention_broadcast(timestep_range=800)",
        "pyramid_attention_broadcast(denoisers='')",
        "pyramid_attention_broadcast(warmup_steps=-1)",
        "pyramid_attention_broadcast(interval=2)",
    )

    def config(self) -> Any:
        pipe = self.pipe
        return config(lambda: pipe.current_timestep, (200, 950))

    def probe_module(self, denoiser: Any) -> torch.nn.Module:
        return blocks_of(denoiser)[-1].attn1.to_q

    def test_a_branch_answers_as_if_the_other_were_not_there(self) -> None:
        pipe = self.make_pipeline()
        everywhere = "pyramid_attention_broadcast(timestep_range=(-1, 1001))"
        with fb.enable(pipe, schedule="LLL", adapters=[everywhere]), recorded(pipe.transformer) as calls:
            generate(pipe, **self.call)
        branches = [calls] if self.call else [rows(calls, 0), rows(calls, 1)]
        for branch in branches:
            twin = self.make_pipeline().transformer
            twin.enable_cache(config(lambda: 500))
            assert largest_change(branch, twin) < 1e-5


class TestOnLTXWithGuidance(PyramidContract):
    make_small = staticmethod(small_ltx)

    def make_pipeline(self) -> Any:
        self.pipe = tiny_ltx_pipeline()
        return self.pipe


class TestOnWanWithoutGuidance(PyramidContract):
    call = {"guidance_scale": 1.0}  # noqa: RUF012
    make_small = staticmethod(small_wan)

    def make_pipeline(self) -> Any:
        self.pipe = tiny_wan_pipeline()
        return self.pipe


# -- where branches would mix --------------------------------------------------------------------------------------


def test_by_hand_on_wan_uncond_really_receives_conds_attention() -> None:
    """Why it is refused there: the probe of the contract, on diffusers alone, finds what it is meant to find."""
    pipe = tiny_wan_pipeline()
    pipe.transformer.enable_cache(config(lambda: pipe.current_timestep, cross=2))
    outputs: list[torch.Tensor] = []
    attention = blocks_of(pipe.transformer)[0].attn2
    handle = attention.register_forward_hook(lambda module, args, output: outputs.append(output))
    with recorded(pipe.transformer) as calls:
        generate(pipe, 4)
    handle.remove()
    assert all(uncond is cond for cond, uncond in zip(outputs[::2], outputs[1::2], strict=True))
    twin = tiny_wan_pipeline().transformer
    twin.enable_cache(config(lambda: 500, cross=2))
    assert largest_change(calls[1::2], twin) > 1e-2


def test_on_wan_a_call_with_guidance_is_refused_and_one_without_is_not() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, small_wan(), "LSL", adapters=["pyramid_attention_broadcast"]):
        with pytest.raises(fb.StackError) as refused:
            generate(pipe)
        generate(pipe, guidance_scale=1.0)
    assert (
        "WanPipeline calls the denoiser once for each, so one branch would be answered from the other's state"
        in str(refused.value)
    )
    assert "Call the pipeline with guidance_scale=1.0" in str(refused.value)


@pytest.mark.parametrize("family", [VIDEO_TO_VIDEO, FAMILIES["ltx2"]], ids=lambda family: family.name)
def test_where_the_pipeline_does_not_say_the_second_call_of_a_step_is_refused(family: Family) -> None:
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LSL", adapters=["pyramid_attention_broadcast"]) as blend:
        with pytest.raises(fb.StackError, match=r"calls denoiser [LS] more than once at a step") as refused:
            family.run(pipe)
        assert len(blend.trace.generations[0].calls) == 1
        assert "\n" not in str(refused.value)


def test_where_the_pipeline_does_not_say_a_call_without_guidance_runs() -> None:
    family = VIDEO_TO_VIDEO
    plain, pipe = family.pipe(), family.pipe()
    plain.transformer.enable_cache(config(lambda: plain.current_timestep))
    with fb.enable(pipe, schedule="LLL", adapters=["pyramid_attention_broadcast(timestep_range=(-1, 1001))"]):
        assert torch.equal(family.run(pipe, guidance_scale=1.0), family.run(plain, guidance_scale=1.0))


# -- timesteps and intervals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox", "mochi"])
def test_the_range_is_of_the_pipelines_own_timesteps(name: str) -> None:
    """Mochi's sampler counts up from 0; its pipeline, and so the range, counts down from 1000."""
    family = FAMILIES[name]
    plain, pipe = family.pipe(), family.pipe()
    plain.transformer.enable_cache(config(lambda: plain.current_timestep, (600, 990)))
    spec = "pyramid_attention_broadcast(timestep_range=(600, 990))"
    with fb.enable(pipe, family.make_small(), "LLL", adapters=[spec]) as blend:
        assert torch.equal(family.run(pipe, 8, guidance_scale=1.0), family.run(plain, 8, guidance_scale=1.0))
        outcomes = [call.outcome for call in blend.trace.generations[0].calls]
    assert outcomes[0] == outcomes[-1] == "compute"
    assert "reuse" in outcomes


def test_cross_attention_has_an_interval_of_its_own() -> None:
    """A call is a reuse as soon as any attention in it was given again; compute means that all of it was computed."""
    plain, pipe = tiny_wan_pipeline(), tiny_wan_pipeline()
    plain.transformer.enable_cache(config(lambda: plain.current_timestep, spatial=2, cross=3))
    spec = "pyramid_attention_broadcast(spatial_interval=2, cross_interval=3, timestep_range=(-1, 1001))"
    with fb.enable(pipe, schedule="LLL", adapters=[spec]) as blend:
        assert torch.equal(generate(pipe, 7, guidance_scale=1.0), generate(plain, 7, guidance_scale=1.0))
        outcomes = [call.outcome for call in blend.trace.generations[0].calls]
    assert outcomes == ["reuse" if step % 2 or step % 3 else "compute" for step in range(7)]


def test_the_count_starts_again_in_every_stage() -> None:
    pipe = tiny_ltx_pipeline()
    spec = "pyramid_attention_broadcast(timestep_range=(-1, 1001))"
    with fb.enable(pipe, small_ltx(), "L:3,S:4,L:3", adapters=[spec]) as blend:
        generate(pipe)
        outcomes = [call.outcome for call in blend.trace.generations[0].calls]
    compute, reuse = "compute", "reuse"
    assert outcomes == [compute, reuse, compute] + [compute, reuse] * 2 + [compute, reuse, compute]


def test_the_flops_are_those_of_what_ran() -> None:
    pipe = tiny_ltx_pipeline()
    spec = "pyramid_attention_broadcast(timestep_range=(-1, 1001))"
    with fb.enable(pipe, small_ltx(), "LSL", adapters=[spec]) as blend:
        real = RealCount(list(blend.denoisers.values()))
        with real.running():
            generate(pipe)
        flops = blend.trace.flops()
        assert blend.trace.generations[0].num_forwards("L", "reuse") > 0
    assert (flops.linear, flops.full) == (real.linear, real.total)


# -- what would do nothing -----------------------------------------------------------------------------------------


def refusal(pipe: Any, small: Any, adapter: str) -> str:
    before = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.StackError) as refused:
        fb.enable(pipe, small, "LSL", adapters=[adapter])
    assert before.differences(pipe) == []
    return str(refused.value)


def test_an_interval_that_fits_no_attention_is_refused() -> None:
    message = refusal(tiny_ltx_pipeline(), tiny_ltx_denoiser(), "pyramid_attention_broadcast(cross_interval=2)")
    assert "cross_interval=2 fits no attention of LTXVideoTransformer3DModel" in message
    message = refusal(tiny_wan_pipeline(), tiny_wan_denoiser(), "pyramid_attention_broadcast(temporal_interval=2)")
    assert "Set temporal_interval=None" in message


def test_an_unknown_letter_is_refused_with_those_there_are() -> None:
    message = refusal(tiny_wan_pipeline(), tiny_wan_denoiser(), "pyramid_attention_broadcast(denoisers='LX')")
    assert "names X, and the denoisers of this blend are L, S" in message
