"""Rotate and scale the latents of a trained codec, so that amplitudes in them are amplitudes in the picture.

A codec is free to give a hardly visible detail as large a latent as the layout; a trajectory then decides all of it at
one noise level. After shaping, the channels are independent directions, the most visible first, each as large as its
contribution to the picture. The codec decodes exactly what it decoded before.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo
from safetensors.torch import save_file

from flowblend_compat_matrix.reference.ltx.world import LTX_WORLD
from flowblend_compat_matrix.reference.pair import held_out_videos

from .codec import encode_mean

NUM_VIDEOS = 64
SEED = 60_000


def write_shaped(codec: AutoencoderKLLTXVideo, path: Path) -> None:
    """Shape the latents of a trained codec by some held-out videos, and write its weights to ``path``.

    They are written once, because directions are found only up to their signs: denoisers fit the file they saw.
    """
    videos = torch.from_numpy(held_out_videos(NUM_VIDEOS, seed=SEED, world=LTX_WORLD)).permute(0, 4, 1, 2, 3)
    shape_latents(codec, videos * 2.0 - 1.0)
    partial = path.with_suffix(f".{os.getpid()}")
    save_file({name: value.contiguous() for name, value in codec.state_dict().items()}, partial)
    partial.replace(path)


def shape_latents(codec: AutoencoderKLLTXVideo, videos: torch.Tensor) -> torch.Tensor:
    """Change the last convolution of the encoder and the first of the decoder; returns the matrix ``[64, 64]`` between.

    Args:
        codec: trained; its posterior is read by its mean.
        videos: ``[B, 3, F, H, W]`` in -1..1, some dozens, from which visibility is measured.
    """
    channels: int = codec.config["latent_channels"]
    latents = encode_mean(codec, videos)
    rows = latents.movedim(1, -1).reshape(-1, channels).double()
    spread = torch.cov(rows.T)
    latents.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    seen = codec.decode(latents, return_dict=False)[0]
    (gradient,) = torch.autograd.grad((seen * torch.randn(seen.shape, generator=generator)).sum(), latents)
    slopes = gradient.movedim(1, -1).reshape(-1, channels).double()
    visibility = slopes.T @ slopes / len(slopes)

    values, vectors = torch.linalg.eigh(spread)
    root = vectors * values.sqrt() @ vectors.T
    power, directions = torch.linalg.eigh(root @ visibility @ root)
    amplitudes = power.flip(0).clamp(min=1e-12).sqrt()
    matrix = amplitudes[:, None] * directions.flip(1).T @ torch.linalg.inv(root)
    matrix = matrix / amplitudes.square().mean().sqrt()
    with torch.no_grad():
        last, first = codec.encoder.conv_out.conv, codec.decoder.conv_in.conv
        assert last.bias is not None
        last.weight[:channels] = torch.einsum("ij,j...->i...", matrix, last.weight[:channels].double()).float()
        last.bias[:channels] = (matrix @ last.bias[:channels].double()).float()
        inverse = torch.linalg.inv(matrix)
        first.weight.copy_(torch.einsum("oj...,ji->oi...", first.weight.double(), inverse).float())
    return matrix
