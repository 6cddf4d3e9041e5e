"""The video codec of the LTX pair: a small `AutoencoderKLLTXVideo` and the loss it is trained by."""

from __future__ import annotations

import types

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.normalization import RMSNorm
from torch import nn

from flowblend_compat_matrix.reference.ltx.world import render, sample_scene

from ..reconstruction import narrow_posterior, reconstruction_loss

LATENT_CHANNELS = 64
KL_WEIGHT = 1e-5
EDGE_WEIGHT = 0.2
IMAGE_STEPS = 200
"""The first steps are taught on single frames, which cost less than videos and settle colours and shapes."""


def make_codec(width: int = 80) -> AutoencoderKLLTXVideo:
    """An untrained codec: 8x in space (4 by patching), 2x in time, so 5 frames of 32x32 become 64x3x4x4 latents."""
    return AutoencoderKLLTXVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(width,),
        down_block_types=("LTXVideoDownBlock3D",),
        decoder_block_out_channels=(width,),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=4,
    )


def prepare_for_training(codec: AutoencoderKLLTXVideo) -> AutoencoderKLLTXVideo:
    """Let the posterior start narrow."""
    narrow_posterior(codec.encoder.conv_out.conv, LATENT_CHANNELS)
    return codec


def _root_mean_square_norm(self: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def use_fast_norms(codec: nn.Module) -> None:
    """Replace diffusers' norm, for training only, by one without a detour through float32."""
    for module in codec.modules():
        if isinstance(module, RMSNorm) and module.weight is None:
            module.forward = types.MethodType(_root_mean_square_norm, module)


def codec_batch(step: int, seed: int, num_videos: int, device: torch.device) -> torch.Tensor:
    """Videos of one step, ``[B, 3, F, 32, 32]`` in -1..1: single frames before `IMAGE_STEPS`, then whole videos."""
    rng = np.random.default_rng((seed, step))
    videos = np.stack([render(sample_scene(rng)) for _ in range(num_videos)])
    batch = torch.from_numpy(videos).to(device).permute(0, 4, 1, 2, 3).contiguous() * 2.0 - 1.0
    if step >= IMAGE_STEPS:
        return batch
    return batch[:, :, [0, 4]].permute(0, 2, 1, 3, 4).flatten(0, 1).unsqueeze(2).contiguous()


def codec_loss(codec: AutoencoderKLLTXVideo, videos: torch.Tensor, step: int) -> torch.Tensor:
    """Distance of the decoded videos from ``videos``; edges weigh more and more over the first thousand steps."""
    with torch.autocast(videos.device.type, torch.bfloat16):
        posterior = codec.encode(videos, return_dict=False)[0]
        output = codec.decode(posterior.sample(), return_dict=False)[0]
    return reconstruction_loss(
        output,
        videos,
        posterior.mean,
        posterior.logvar,
        edge_weight=EDGE_WEIGHT * min(1.0, step / 1000.0),
        kl_weight=KL_WEIGHT,
        square_weight=4.0,
    )


@torch.no_grad()
def encode_mean(codec: AutoencoderKLLTXVideo, videos: torch.Tensor) -> torch.Tensor:
    """The posterior mean of videos in -1..1, not normalised: ``[B, 64, 3, 4, 4]``."""
    return codec.encode(videos, return_dict=False)[0].mode()


def normalise(codec: AutoencoderKLLTXVideo, latents: torch.Tensor) -> torch.Tensor:
    """Latents ``[B, 64, 3, 4, 4]`` as the denoisers see them: tokens ``[B, 48, 64]``, by the codec's statistics."""
    tokens = latents.flatten(2).mT
    mean, std = (getattr(codec, name).to(latents.device) for name in ("latents_mean", "latents_std"))
    return (tokens - mean) / std
