"""The two UNets: their sizes, their noise schedule, and the loss they are trained by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from .codec import LATENT_CHANNELS, LATENT_SIZE
from .text import TEXT_DIM


@dataclass(frozen=True, kw_only=True)
class UNetSize:
    """Sizes in which the large and the small denoiser differ."""

    channels: tuple[int, int]
    layers: int


LARGE = UNetSize(channels=(48, 96), layers=2)
SMALL = UNetSize(channels=(32, 48), layers=1)


def make_denoiser(size: UNetSize) -> UNet2DConditionModel:
    """An untrained UNet over 16x16 latents, in two levels; the words are read at the lower one, of 8x8."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=size.channels,
        layers_per_block=size.layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=tuple(width // 16 for width in size.channels),  # pyright: ignore[reportArgumentType]
        cross_attention_dim=TEXT_DIM,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule and its DDIM sampler."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def noise_loss(
    denoiser: nn.Module, latents: torch.Tensor, prompts: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, arXiv 2006.11239).

    ``latents`` are scaled, ``[B, 4, 16, 16]``; ``prompts`` ``[B, 16, 64]``; ``generator`` is on the CPU.
    """
    scheduler = make_scheduler()
    timesteps = torch.randint(0, 1000, (latents.shape[0],), generator=generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps.to(latents.device))  # type: ignore[arg-type]
    predicted = denoiser(noisy, timesteps.to(latents.device), prompts, return_dict=False)[0]
    return (predicted.float() - noise).square().mean()
