"""Tiny real pipelines with random weights, and one generation on them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from ..types import Denoiser, Keywords, Pipeline

_NUM_PROMPTS: ContextVar[int] = ContextVar("num_prompts", default=1)


def tiny_wan_denoiser(seed: int = 1, layers: int = 1, heads: int = 1) -> Denoiser:
    """A random ``WanTransformer3DModel``: 4 latent channels, text width 16, ``heads`` x 12 wide."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=heads,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ).eval()


def tiny_wan_pipeline(seed: int = 0) -> Pipeline:
    """A ``WanPipeline`` on a random denoiser of two layers, with UniPC as Wan 2.1 has it."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=3,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    transformer = tiny_wan_denoiser(seed, layers=2, heads=2)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_ltx_denoiser(seed: int = 1, layers: int = 1, heads: int = 1) -> Denoiser:
    """A random ``LTXVideoTransformer3DModel``: 8 latent channels, text width 16, ``heads`` x 16 wide."""
    from diffusers import LTXVideoTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            patch_size=1,
            patch_size_t=1,
            num_attention_heads=heads,
            attention_head_dim=16,
            cross_attention_dim=heads * 16,
            num_layers=layers,
            caption_channels=16,
        ).eval()


def tiny_ltx_pipeline(seed: int = 0) -> Pipeline:
    """An ``LTXPipeline`` on a random denoiser of two layers, with flow-match Euler as LTX-Video has it."""
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLLTXVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False, False, False, False, False),
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    transformer = tiny_ltx_denoiser(seed, layers=2, heads=2)
    pipe = LTXPipeline(scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=transformer)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def prompts_in_a_batch(num_prompts: int) -> Iterator[None]:
    """While this is entered, :func:`generate` asks for so many videos in one call, each of its own text and noise."""
    before = _NUM_PROMPTS.set(num_prompts)
    try:
        yield
    finally:
        _NUM_PROMPTS.reset(before)


@torch.no_grad()
def generate(pipe: Pipeline, num_inference_steps: int | None = 10, seed: int = 0, **overrides: object) -> torch.Tensor:
    """Latents of one generation on a tiny pipeline: 32x32 pixels, 9 frames, guidance on, fixed random text.

    Args:
        pipe: a pipeline of this module, or one that takes the same arguments.
        num_inference_steps: ``None`` leaves the argument out of the call, for adapters that set it.
        seed: of the noise; the text is always the same.
        overrides: further arguments of the pipeline call, in place of those chosen here.
    """
    config = pipe.transformer.config
    width = config.get("text_dim") or config["caption_channels"]
    num = _NUM_PROMPTS.get()
    text = torch.Generator().manual_seed(1234)
    arguments: Keywords = {
        "prompt_embeds": torch.randn(num, 8, width, generator=text),
        "negative_prompt_embeds": torch.randn(num, 8, width, generator=text),
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }
    if "prompt_attention_mask" in inspect.signature(pipe.__call__).parameters:
        mask = torch.ones(num, 8)
        arguments |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    if num_inference_steps is not None:
        arguments["num_inference_steps"] = num_inference_steps
    return pipe(**(arguments | overrides)).frames
