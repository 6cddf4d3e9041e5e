"""The video codec of the LTX pair: a small `AutoencoderKLLTXVideo` and the loss it is trained by."""

from __future__ import annotations

import types

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.normalization import RMSNorm
from torch import nn

from flowblend_compat_matrix.reference.ltx.world import render, sample_scene

LATENT_CHANNELS = 48
KL_WEIGHT = 1e-5
EDGE_WEIGHT = 0.2
IMAGE_STEPS = 400
"""The first steps are taught on single frames, which cost a fifth of a video and settle colours and shapes."""


def make_codec(widths: tuple[int, int] = (32, 64)) -> AutoencoderKLLTXVideo:
    """An untrained codec: 8x in space (2 by patching), 4x in time, so 9 frames of 32x32 become 48x3x4x4 latents."""
    return AutoencoderKLLTXVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        down_block_types=("LTXVideoDownBlock3D", "LTXVideoDownBlock3D"),
        decoder_block_out_channels=widths,
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
    )


def prepare_for_training(codec: AutoencoderKLLTXVideo) -> AutoencoderKLLTXVideo:
    """Let the posterior start narrow: from unit variance its noise drowns the colours for the first thousand steps."""
    last = codec.encoder.conv_out.conv
    with torch.no_grad():
        assert last.bias is not None
        last.weight[LATENT_CHANNELS:] *= 0.1
        last.bias[LATENT_CHANNELS:] = -6.0
    return codec


def _root_mean_square_norm(self: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def use_fast_norms(codec: nn.Module) -> None:
    """For training only: diffusers' norm without its detour through float32."""
    for module in codec.modules():
        if isinstance(module, RMSNorm) and module.weight is None:
            module.forward = types.MethodType(_root_mean_square_norm, module)


def codec_batch(step: int, seed: int, num_videos: int, device: torch.device) -> torch.Tensor:
    """The data of one step, ``[B, 3, F, 32, 32]`` in -1..1: single frames at first, whole videos from `IMAGE_STEPS` on."""
    rng = np.random.default_rng((seed, step))
    videos = np.stack([render(sample_scene(rng)) for _ in range(num_videos)])
    batch = torch.from_numpy(videos).to(device).permute(0, 4, 1, 2, 3).contiguous() * 2.0 - 1.0
    if step >= IMAGE_STEPS:
        return batch
    return batch[:, :, [0, 2, 6, 8]].permute(0, 2, 1, 3, 4).flatten(0, 1).unsqueeze(2).contiguous()


def codec_loss(codec: AutoencoderKLLTXVideo, videos: torch.Tensor, step: int) -> torch.Tensor:
    """Squared and absolute error, a term on differences that keeps edges and detail sharp, a very small KL term."""
    with torch.autocast(videos.device.type, torch.bfloat16):
        posterior = codec.encode(videos, return_dict=False)[0]
        output = codec.decode(posterior.sample(), return_dict=False)[0]
    output, mean, log_variance = output.float(), posterior.mean.float(), posterior.logvar.float()
    error = output - videos
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    if videos.shape[2] > 1:
        edges = edges + error.diff(dim=2).abs().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    edge_weight = EDGE_WEIGHT * min(1.0, step / 2000.0)
    return 4.0 * error.square().mean() + 0.3 * error.abs().mean() + edge_weight * edges + KL_WEIGHT * divergence
