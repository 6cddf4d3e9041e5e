"""The video codec: a small `AutoencoderKLWan`, its training, and the statistics of its latents."""

from __future__ import annotations

import types

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm, unpatchify

from flowblend_compat_matrix.reference.world import render, sample_scene

from ..reconstruction import narrow_posterior, reconstruction_loss

LATENT_CHANNELS = 12
PATCH_SIZE = 2
EDGE_WEIGHT = 0.3
IMAGE_STEPS = 600
"""The first steps are taught on single frames, which cost a seventh of a video and settle colours and shapes."""


def make_codec(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """An untrained codec: 8x in space (2 by patching), 4x in time, so 9 frames of 64x64 become 12x3x8x8 latents.

    ``mean`` and ``std`` are the per-channel statistics that the pipeline normalises latents by.
    """
    return AutoencoderKLWan(
        base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=3 * PATCH_SIZE**2,
        out_channels=3 * PATCH_SIZE**2,
        patch_size=PATCH_SIZE,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
        latents_mean=mean or [0.0] * LATENT_CHANNELS,
        latents_std=std or [1.0] * LATENT_CHANNELS,
    )


def video_batch(seed: tuple[int, ...], size: int, device: torch.device) -> torch.Tensor:
    """World videos as the codec takes them: ``[B, 3, F, H, W]`` in -1..1."""
    rng = np.random.default_rng(seed)
    videos = np.stack([render(sample_scene(rng)) for _ in range(size)])
    return torch.from_numpy(videos).to(device).permute(0, 4, 1, 2, 3).contiguous() * 2.0 - 1.0


def decode_unclamped(codec: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decode as `AutoencoderKLWan.decode` does, less its clamp, through which no gradient would pass."""
    codec.clear_cache()
    hidden = codec.post_quant_conv(latents)
    chunks = []
    for frame in range(hidden.shape[2]):
        codec._conv_idx = [0]
        extra = {"first_chunk": True} if frame == 0 else {}
        chunk = codec.decoder(
            hidden[:, :, frame : frame + 1],
            feat_cache=codec._feat_map,
            feat_idx=codec._conv_idx,
            **extra,
        )
        chunks.append(chunk)
    codec.clear_cache()
    return unpatchify(torch.cat(chunks, dim=2), patch_size=PATCH_SIZE)


def prepare_for_training(codec: AutoencoderKLWan) -> AutoencoderKLWan:
    """Start with a narrow posterior, see :func:`~..reconstruction.narrow_posterior`."""
    narrow_posterior(codec.quant_conv, LATENT_CHANNELS)
    return codec


def _root_mean_square_norm(self: WanRMS_norm, x: torch.Tensor) -> torch.Tensor:
    dim = 1 if self.channel_first else -1
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-8) * self.gamma + self.bias


def use_fast_norms(codec: AutoencoderKLWan) -> None:
    """Replace diffusers' norms for training by the same norm in a form that makes a step on a CPU a fifth faster."""
    for module in codec.modules():
        if isinstance(module, WanRMS_norm):
            module.forward = types.MethodType(_root_mean_square_norm, module)


def codec_batch(step: int, seed: int, num_videos: int, device: torch.device) -> torch.Tensor:
    """The data of one step: single frames at first, whole videos after `IMAGE_STEPS`."""
    videos = video_batch((seed, step), num_videos, device)
    if step >= IMAGE_STEPS:
        return videos
    return videos[:, :, [0, 3, 5, 8]].permute(0, 2, 1, 3, 4).flatten(0, 1).unsqueeze(2).contiguous()


def codec_loss(codec: AutoencoderKLWan, videos: torch.Tensor, step: int) -> torch.Tensor:
    """The reconstruction loss of videos ``[B, 3, F, H, W]``; the term on differences grows over 2,000 steps."""
    with torch.autocast(videos.device.type, torch.bfloat16):
        posterior = codec.encode(videos, return_dict=False)[0]
        output = decode_unclamped(codec, posterior.sample())
    edge_weight = EDGE_WEIGHT * min(1.0, step / 2000.0)
    return reconstruction_loss(output, videos, posterior.mean, posterior.logvar, edge_weight=edge_weight)


@torch.no_grad()
def encode_mean(codec: AutoencoderKLWan, videos: torch.Tensor) -> torch.Tensor:
    """The posterior mean, not normalised: ``[B, 12, 3, 8, 8]``."""
    return codec.encode(videos, return_dict=False)[0].mode()


def normalise(codec: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the denoisers see them, by the statistics in the codec's config."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(codec.config["latents_mean"], device=latents.device).view(shape)
    std = torch.tensor(codec.config["latents_std"], device=latents.device).view(shape)
    return (latents - mean) / std


def latent_statistics(latents: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of ``[N, C, F, H, W]``."""
    axes = (0, 2, 3, 4)
    return latents.mean(dim=axes).tolist(), latents.std(dim=axes).tolist()
