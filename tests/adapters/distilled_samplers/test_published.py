"""Published few-step methods: their figures, and their samplers held against what their authors' code computes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

import flowblend_plugins as fb
from flowblend_adapters.distilled_samplers.published import CausVid, FastWan, LightX2V, LTXDistilled
from flowblend_plugins.testing import generate, tiny_ltx_denoiser, tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.distilled_samplers.lora_files import write_original_wan_lora
from tests.exactness.pipelines import FAMILIES

LIGHTX2V_STEPS = (1000, 750, 500, 250)
LTX_TIMESTEPS = [1000, 993, 987, 981, 975, 909, 725, 0.03]


def test_lightx2v_samples_at_the_levels_of_its_own_scheduler() -> None:
    """Its code takes every level of a shifted list of 1000 and picks entries 0, 250, 500 and 750."""
    levels = torch.linspace(1.0, 0.0, 1001)[:-1]
    levels = 5.0 * levels / (1 + (5.0 - 1) * levels)
    picked = levels[[1000 - step for step in LIGHTX2V_STEPS]].tolist()
    assert LightX2V().sigmas == pytest.approx(picked, abs=1e-6)
    assert LightX2V().num_inference_steps == 4


def test_lightx2v_predicts_and_renoises(tmp_path: Path) -> None:
    """Four steps by hand: the clean video by ``x - sigma * v``, then new noise at the next level."""
    lora = write_original_wan_lora(tmp_path / "lora.safetensors", 5, width=24, num_blocks=2)
    plain, text = tiny_wan_pipeline(), torch.Generator().manual_seed(1234)
    plain.load_lora_weights(lora)
    prompt, generator = torch.randn(1, 8, 16, generator=text), torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 3, 4, 4, generator=generator)
    sigmas = [*map(float, np.array(LightX2V().sigmas, dtype=np.float32)), 0.0]
    with torch.no_grad():
        for sigma, following in itertools.pairwise(sigmas):
            timestep = torch.tensor([sigma * 1000])
            velocity = plain.transformer(latents, timestep, prompt, return_dict=False)[0]
            clean = latents - sigma * velocity
            noise = torch.randn(clean.shape, generator=generator)
            latents = (1 - following) * clean + following * noise
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LLL", adapters=[f"lightx2v(large={lora!r})"]):
        torch.testing.assert_close(generate(pipe, None), latents, rtol=1e-4, atol=1e-4)


def test_causvid_by_hand(tmp_path: Path) -> None:
    lora = write_original_wan_lora(tmp_path / "lora.safetensors", 5, width=24, num_blocks=2)
    plain = tiny_wan_pipeline()
    plain.load_lora_weights(lora, adapter_name="causvid")
    plain.set_adapters("causvid", 0.3)
    plain.scheduler = UniPCMultistepScheduler.from_config(plain.scheduler.config, flow_shift=8.0)
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LLL", adapters=[f"causvid(large={lora!r})"]):
        assert torch.equal(generate(pipe, None), generate(plain, 12, guidance_scale=1.0))


def test_fastwan_samples_where_the_shifted_schedule_has_its_timesteps() -> None:
    """Timesteps 757 and 522 are 0.28 and 0.12 of the way, shifted by 8."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=8.0)
    nearest = [scheduler.sigmas[(scheduler.timesteps - step).abs().argmin()].item() for step in (1000, 757, 522)]
    assert FastWan().sigmas == pytest.approx(nearest, abs=1e-3)


def test_ltx_distilled_by_hand() -> None:
    """As diffusers' page on LTX-Video calls it: the timesteps in the call, guidance off."""
    family = FAMILIES["ltx-condition"]
    plain, pipe = family.pipe(), family.pipe()
    plain.scheduler = FlowMatchEulerDiscreteScheduler()
    expected = family.run(plain, timesteps=LTX_TIMESTEPS, guidance_scale=1.0)
    specs = ["ltx_distilled(large='as_loaded')"]
    with fb.enable(pipe, tiny_ltx_denoiser(), "LLL", adapters=specs) as blend:
        assert torch.equal(family.run(pipe, num_inference_steps=8), expected)
        assert {call.step.branch for call in blend.trace.generations[-1].calls} == {"cond_uncond"}
    assert LTXDistilled().num_inference_steps == 8


@pytest.mark.parametrize(
    ("spec", "pipe", "message"),
    [
        ("lightx2v", FAMILIES["ltx"].make_pipe, "runs on WanTransformer3DModel"),
        ("causvid", FAMILIES["ltx"].make_pipe, "runs on WanTransformer3DModel"),
        ("ltx_distilled", FAMILIES["wan"].make_pipe, "runs on LTXVideoTransformer3DModel"),
        ("fastwan", FAMILIES["wan"].make_pipe, "the few-step weights of denoiser L are not known"),
        ("ltx_distilled", FAMILIES["ltx"].make_pipe, "the few-step weights of denoiser L are not known"),
    ],
)
def test_on_the_wrong_family_or_without_weights(spec: str, pipe: Any, message: str) -> None:
    with pytest.raises(fb.StackError, match=message):
        fb.enable(pipe(), schedule="LLL", adapters=[spec])


def test_another_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="num_inference_steps=6, but sigmas has 4 noise levels"):
        LightX2V(num_inference_steps=6)
    assert CausVid(num_inference_steps=4).num_inference_steps == 4
