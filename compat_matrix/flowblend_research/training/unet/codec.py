"""The still codec: a small `AutoencoderKL`, the stills it is taught on, and its loss."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from flowblend_compat_matrix.reference.world import NUM_FRAMES, SIZE, Scene, render, sample_scene

LATENT_CHANNELS = 4
LATENT_SIZE = SIZE // 4
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.3


def make_codec(scaling_factor: float = 1.0) -> AutoencoderKL:
    """An untrained codec: 4x in space, so that a still of 64x64 becomes 4x16x16 latents.

    ``scaling_factor`` brings the latents to unit variance, as the pipeline expects of it.
    """
    make: Any = AutoencoderKL  # whose signature says that a tuple of block sizes has one element
    return make(
        sample_size=SIZE,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=scaling_factor,
    )


def prepare_for_training(codec: AutoencoderKL) -> AutoencoderKL:
    """Let the posterior start narrow: from unit variance its noise drowns the colours for the first thousand steps."""
    with torch.no_grad():
        assert codec.quant_conv is not None
        assert codec.quant_conv.bias is not None
        codec.quant_conv.weight[LATENT_CHANNELS:] *= 0.1
        codec.quant_conv.bias[LATENT_CHANNELS:] = -6.0
    return codec


def stills(scenes: list[Scene]) -> torch.Tensor:
    """The middle frame of each scene as the codec takes it: ``[B, 3, 64, 64]`` in -1..1."""
    frames = np.stack([render(scene)[NUM_FRAMES // 2] for scene in scenes])
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous() * 2.0 - 1.0


def still_batch(seed: tuple[int, ...], size: int) -> torch.Tensor:
    """Stills of fresh scenes."""
    rng = np.random.default_rng(seed)
    return stills([sample_scene(rng) for _ in range(size)])


def codec_loss(codec: AutoencoderKL, images: torch.Tensor, step: int) -> torch.Tensor:
    """Squared and absolute error, a term on differences that keeps edges and textures sharp, a very small KL term.

    The edge term grows over the first steps: at full weight from the start it makes everything grey.
    """
    with torch.autocast(images.device.type, torch.bfloat16):
        moments = codec.quant_conv(codec.encoder(images))  # pyright: ignore[reportOptionalCall]
        posterior = DiagonalGaussianDistribution(moments.float())
        output = codec.decode(cast(Any, posterior.sample()), return_dict=False)[0]
    error = output.float() - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (posterior.mean.square() + posterior.logvar.exp() - 1.0 - posterior.logvar).mean()
    edge_weight = EDGE_WEIGHT * min(1.0, step / 300.0)
    return error.square().mean() + 0.3 * error.abs().mean() + edge_weight * edges + KL_WEIGHT * divergence


@torch.no_grad()
def encode_mean(codec: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """The posterior mean, not scaled: ``[B, 4, 16, 16]``."""
    return codec.encode(images, return_dict=False)[0].mode()
