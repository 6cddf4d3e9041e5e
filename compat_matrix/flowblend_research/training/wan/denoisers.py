"""The two denoisers: their sizes, what one forward costs, and the flow-matching loss they are trained by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..text import MAX_SEQUENCE_LENGTH, TEXT_DIM
from .codec import LATENT_CHANNELS

LATENT_SHAPE = (LATENT_CHANNELS, 3, 8, 8)
TRAINING_SHIFT = 3.0
SAMPLING_SHIFT = 1.0
"""Chosen by behaviour (docs/reference_pair.md): larger steps at high noise, where the layout is decided."""


@dataclass(frozen=True, kw_only=True)
class DenoiserSize:
    """Sizes in which the large and the small denoiser differ."""

    num_heads: int
    num_layers: int
    head_dim: int = 32

    @property
    def dim(self) -> int:
        return self.num_heads * self.head_dim


LARGE = DenoiserSize(num_heads=6, num_layers=8)
SMALL = DenoiserSize(num_heads=3, num_layers=4)


def make_denoiser(size: DenoiserSize) -> WanTransformer3DModel:
    """Make an untrained `WanTransformer3DModel`, of tokens with 12 channels x 2x2 = 48 values."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=size.num_heads,
        attention_head_dim=size.head_dim,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=size.dim * 5 // 2,
        num_layers=size.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def forward_flops(config: dict[str, object]) -> int:
    """FLOPs of one forward of one guidance branch at the pair's own token counts, attention included (2 per MAC).

    Counted on the meta device; on CPU tensors `FlopCounterMode` silently leaves fused attention out.
    """
    with torch.device("meta"):
        denoiser = cast(WanTransformer3DModel, WanTransformer3DModel.from_config(config))
        latents = torch.empty(1, *LATENT_SHAPE)
        prompt = torch.empty(1, MAX_SEQUENCE_LENGTH, TEXT_DIM)
        counter = FlopCounterMode(display=False)
        with counter:
            denoiser(latents, torch.empty(1), prompt, return_dict=False)
    return counter.get_total_flops()


def sample_sigmas(num: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels in 0..1, uniform before the shift towards noise that Wan is trained with."""
    uniform = torch.rand(num, generator=generator)
    return TRAINING_SHIFT * uniform / (1.0 + (TRAINING_SHIFT - 1.0) * uniform)


def flow_matching_loss(
    denoiser: nn.Module, latents: torch.Tensor, prompts: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the velocity ``noise - x0`` at ``x = (1 - sigma) x0 + sigma noise``, as Wan is trained.

    ``latents`` are normalised, ``[B, 12, 3, 8, 8]``; ``prompts`` ``[B, 32, 64]``; ``generator`` is on the CPU.
    """
    sigmas = sample_sigmas(latents.shape[0], generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    level = sigmas.view(-1, 1, 1, 1, 1)
    noisy = (1.0 - level) * latents + level * noise
    velocity = denoiser(noisy, 1000.0 * sigmas, prompts, return_dict=False)[0]
    return (velocity.float() - (noise - latents)).square().mean()
