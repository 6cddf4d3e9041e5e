"""The still codec: a small `AutoencoderKL`, the stills it is taught on, and its loss."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from flowblend_compat_matrix.reference.world import NUM_FRAMES, SIZE, Scene, render, sample_scene

from ..reconstruction import narrow_posterior, reconstruction_loss

LATENT_CHANNELS = 4
LATENT_SIZE = SIZE // 4
EDGE_WEIGHT = 0.3


def make_codec(scaling_factor: float = 1.0) -> AutoencoderKL:
    """An untrained codec: 4x in space, so that a still of 64x64 becomes 4x16x16 latents.

    ``scaling_factor`` brings the latents to unit variance, as the pipeline expects of it.
    """
    return AutoencoderKL(
        sample_size=SIZE,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 48),  # pyright: ignore[reportArgumentType] (it says a tuple of one)
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=scaling_factor,
    )


def prepare_for_training(codec: AutoencoderKL) -> AutoencoderKL:
    """Start with a narrow posterior, see :func:`~..reconstruction.narrow_posterior`."""
    assert codec.quant_conv is not None
    narrow_posterior(codec.quant_conv, LATENT_CHANNELS)
    return codec


def stills(scenes: list[Scene]) -> torch.Tensor:
    """The middle frame of each scene as the codec takes it: ``[B, 3, 64, 64]`` in -1..1."""
    frames = np.stack([render(scene)[NUM_FRAMES // 2] for scene in scenes])
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous() * 2.0 - 1.0


def still_batch(seed: tuple[int, ...], size: int) -> torch.Tensor:
    """Draw stills of fresh scenes."""
    rng = np.random.default_rng(seed)
    return stills([sample_scene(rng) for _ in range(size)])


def codec_loss(codec: AutoencoderKL, images: torch.Tensor, step: int) -> torch.Tensor:
    """The reconstruction loss of stills ``[B, 3, 64, 64]``; the term on differences grows over 300 steps."""
    with torch.autocast(images.device.type, torch.bfloat16):
        moments = codec.quant_conv(codec.encoder(images))  # pyright: ignore[reportOptionalCall]
        posterior = DiagonalGaussianDistribution(moments.float())
        output = codec.decode(posterior.sample(), return_dict=False)[0]  # pyright: ignore[reportArgumentType]
    edge_weight = EDGE_WEIGHT * min(1.0, step / 300.0)
    return reconstruction_loss(output, images, posterior.mean, posterior.logvar, edge_weight=edge_weight)


@torch.no_grad()
def encode_mean(codec: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """The posterior mean, not scaled: ``[B, 4, 16, 16]``."""
    return codec.encode(images, return_dict=False)[0].mode()
