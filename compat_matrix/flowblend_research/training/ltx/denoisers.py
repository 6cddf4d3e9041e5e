"""The two denoisers of the LTX pair: their sizes and the flow-matching loss they are trained by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import LTXVideoTransformer3DModel
from torch import nn

from .codec import LATENT_CHANNELS
from .text import TEXT_DIM

LATENT_FRAMES, LATENT_SIZE = 3, 4
NUM_TOKENS = LATENT_FRAMES * LATENT_SIZE**2
SPATIAL_RATIO, TEMPORAL_RATIO, FRAME_RATE = 8, 2, 25
CONDITION_FRACTION = 0.2
"""The share of batches that are called as `LTXConditionPipeline` calls."""

CONDITION_NOISE_SCALE = 0.15
"""The noise that `LTXConditionPipeline` puts on a frame it is given, by its default."""


@dataclass(frozen=True, kw_only=True)
class DenoiserSize:
    """Sizes that differ between the large and the small denoiser."""

    num_heads: int
    num_layers: int
    head_dim: int = 32


LARGE = DenoiserSize(num_heads=6, num_layers=7)
SMALL = DenoiserSize(num_heads=4, num_layers=3)


def make_denoiser(size: DenoiserSize) -> LTXVideoTransformer3DModel:
    """Make an untrained `LTXVideoTransformer3DModel` of a size. A token is 64 values, half the small one's width."""
    return LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=size.num_heads,
        attention_head_dim=size.head_dim,
        cross_attention_dim=size.num_heads * size.head_dim,
        num_layers=size.num_layers,
        caption_channels=TEXT_DIM,
    )


def video_coordinates() -> torch.Tensor:
    """Coordinates of the tokens, as `LTXConditionPipeline` counts, ``[3, 48]``: seconds, rows, columns."""
    frames = (torch.arange(LATENT_FRAMES) * TEMPORAL_RATIO + 1 - TEMPORAL_RATIO).clamp(min=0) / FRAME_RATE
    places = torch.arange(LATENT_SIZE) * float(SPATIAL_RATIO)
    return torch.stack(torch.meshgrid(frames, places, places, indexing="ij")).flatten(1)


def flow_matching_loss(
    denoiser: nn.Module,
    latents: torch.Tensor,
    prompts: torch.Tensor,
    mask: torch.Tensor,
    generator: torch.Generator,
    condition_fraction: float = CONDITION_FRACTION,
) -> torch.Tensor:
    """Mean squared error of the velocity ``noise - x0`` at ``x = (1 - sigma) x0 + sigma noise``, sigma uniform.

    ``latents`` are normalised tokens ``[B, 48, 64]``, ``prompts`` ``[B, 32, 64]`` with their ``mask`` ``[B, 32]``;
    ``generator`` is on the CPU. A ``condition_fraction`` of the batches is called as `LTXConditionPipeline` calls (its
    coordinates, a timestep for every token), and half of the videos in them are given their first latent frame.
    """
    device, size = latents.device, latents.shape[0]
    sigmas = torch.rand(size, generator=generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    level = sigmas.view(-1, 1, 1)
    noisy, target = (1.0 - level) * latents + level * noise, noise - latents
    if float(torch.rand(1, generator=generator)) >= condition_fraction:
        scale = (TEMPORAL_RATIO / FRAME_RATE, SPATIAL_RATIO, SPATIAL_RATIO)
        velocity = denoiser(
            noisy,
            prompts,
            1000.0 * sigmas,
            mask,
            num_frames=LATENT_FRAMES,
            height=LATENT_SIZE,
            width=LATENT_SIZE,
            rope_interpolation_scale=scale,
            return_dict=False,
        )[0]
        return (velocity.float() - target).square().mean()
    given = torch.zeros(size, NUM_TOKENS, 1, device=device)
    given[: size // 2, : LATENT_SIZE**2] = 1.0
    kept = latents + CONDITION_NOISE_SCALE * level.square() * noise
    noisy = torch.lerp(noisy, kept, given)
    timesteps = 1000.0 * sigmas[:, None] * (1.0 - given[..., 0])
    coordinates = video_coordinates().to(device).expand(size, -1, -1)
    velocity = denoiser(noisy, prompts, timesteps, mask, video_coords=coordinates, return_dict=False)[0]
    error = (velocity.float() - target).square() * (1.0 - given)
    return error.sum() / (1.0 - given).sum() / LATENT_CHANNELS
