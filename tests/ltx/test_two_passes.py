"""The published two-pass script: base pass, latent upsampler, second pass, unchanged but for ``enable``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LTXLatentUpsamplePipeline
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

import flowblend_plugins as fb
from tests.exactness.pipelines import masked_text, seeded
from tests.ltx.pipelines import CONDITION

FIRST = [1000, 993, 987, 981, 975, 909, 725, 0.03]
SECOND = [1000, 909, 725, 421, 0]  # of which denoise_strength leaves out the first
SECOND_SIGMAS = [0.909, 0.725, 0.421]
Enable = Callable[[Any], Any]


def plain(pipe: Any) -> Any:
    return contextlib.nullcontext()


@torch.no_grad()
def two_passes(
    pipe: Any, first: Enable, second: Enable, *, with_timesteps: bool = True, **further: Any
) -> torch.Tensor:
    """As diffusers' page on LTX-Video writes it, at a tiny size; each pass in what ``first`` or ``second`` enables."""
    common = masked_text(1, 16) | {
        "num_frames": 9, "image_cond_noise_scale": 0.0, "guidance_scale": 1.0, "guidance_rescale": 0.7,
        "decode_timestep": 0.05, "decode_noise_scale": 0.025, "generator": torch.Generator().manual_seed(0),
        "output_type": "latent", **further,
    }  # fmt: skip
    lists = [{"timesteps": FIRST}, {"timesteps": SECOND}] if with_timesteps else [{}, {}]
    with first(pipe):
        latents = pipe(**common, **lists[0], height=32, width=32).frames
    upsampler = seeded(lambda: LTXLatentUpsamplerModel(in_channels=8, mid_channels=32, num_blocks_per_stage=1), 5)
    upsample = LTXLatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler)
    latents = upsample(latents=latents, adain_factor=1.0, tone_map_compression_ratio=0.6, output_type="latent").frames
    with second(pipe):
        return pipe(**common, **lists[1], height=64, width=64, denoise_strength=0.999, latents=latents).frames


def enabled(schedule: str, *adapters: str, blends: list[Any] | None = None) -> Enable:
    def enable(pipe: Any) -> Any:
        blend = fb.enable(pipe, CONDITION.make_small(), schedule, adapters=adapters)
        if blends is not None:
            blends.append(blend)
        return blend

    return enable


DISTILLED = "ltx_distilled(large='as_loaded', small='as_loaded')"


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return two_passes(CONDITION.pipe(), plain, plain)


def test_the_script_with_large_only_equals_plain(expected: torch.Tensor) -> None:
    assert torch.equal(two_passes(CONDITION.pipe(), enabled("LLL"), enabled("LLL")), expected)


def test_ltx_distilled_takes_timesteps_that_equal_its_own(expected: torch.Tensor) -> None:
    always = enabled("LLL", DISTILLED)
    assert torch.equal(two_passes(CONDITION.pipe(), always, always), expected)


def test_without_timesteps_each_pass_has_its_own_levels() -> None:
    blends: list[Any] = []
    always = enabled("LLL", DISTILLED, blends=blends)
    two_passes(CONDITION.pipe(), always, always, with_timesteps=False)
    first, second = ([call.step.sigma for call in blend.trace.last.calls] for blend in blends)
    assert first == pytest.approx([0.001 * t for t in FIRST], abs=1e-6)
    assert second == pytest.approx(SECOND_SIGMAS, abs=1e-6)


def test_one_blend_serves_both_passes() -> None:
    pipe = CONDITION.pipe()
    with fb.enable(pipe, schedule="LLL", adapters=["ltx_distilled(large='as_loaded')"]) as blend:
        two_passes(pipe, plain, plain, with_timesteps=False)
        two_passes(pipe, plain, plain, with_timesteps=False)
        assert [len(generation.calls) for generation in blend.trace.generations] == [8, 3, 8, 3]


def test_the_schedule_may_differ_by_pass() -> None:
    blends: list[Any] = []
    two_passes(CONDITION.pipe(), enabled("L:3,S:3,L:2", blends=blends), enabled("SSS", blends=blends))
    letters = ["".join(call.step.denoiser for call in blend.trace.last.calls) for blend in blends]
    assert letters == ["LLLSSSLL", "SSSS"]


def test_timesteps_of_neither_pass_are_refused() -> None:
    pipe = CONDITION.pipe()
    with fb.enable(pipe, schedule="LLL", adapters=["ltx_distilled(large='as_loaded')"]) as blend:
        with pytest.raises(fb.StackError, match=r"timesteps=\[1000.0, 500.0\].* was distilled for") as refused:
            CONDITION.run(pipe, guidance_scale=1.0, timesteps=[1000, 500])
        assert "909.0, 725.0, 421.0] (the second pass)" in str(refused.value)
        with pytest.raises(fb.RoutingError, match="chooses the noise levels of this pass when the call is made"):
            blend.preview(8, denoise_strength=0.999)


def test_guidance_and_its_rescale_under_lsl_equal_denoisers_exchanged_by_hand() -> None:
    from tests.exactness.oracles import swapped

    call = {"guidance_scale": 4.0, "guidance_rescale": 0.7, "num_inference_steps": 6}
    by_hand, blended = CONDITION.pipe(), CONDITION.pipe()
    denoisers = {"L": by_hand.transformer, "S": CONDITION.make_small()}
    by_swapping = swapped(CONDITION, by_hand, denoisers, "LLSSLL", **call)
    with fb.enable(blended, CONDITION.make_small(), "L:2,S:2,L:2"):
        assert torch.equal(CONDITION.run(blended, **call), by_swapping)
