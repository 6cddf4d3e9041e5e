"""Single files as Lightricks and ComfyUI lay them out, with the weights of tiny denoisers under the true keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_RENAMED = (("proj_in", "patchify_proj"), ("time_embed", "adaln_single"), ("norm_q", "q_norm"), ("norm_k", "k_norm"))
FP8 = torch.float8_e4m3fn


def authors_name(name: str) -> str:
    for ours, theirs in _RENAMED:
        name = name.replace(ours, theirs)
    return f"model.diffusion_model.{name}"


def authors_tensors(denoiser: Any, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    return {authors_name(name): t.detach().to(dtype).contiguous() for name, t in denoiser.state_dict().items()}


def vae_tensors(vae: Any) -> dict[str, torch.Tensor]:
    """What is read of the VAE in a full checkpoint, and one tensor that is not."""
    return {
        "vae.per_channel_statistics.mean-of-means": vae.latents_mean.float().clone(),
        "vae.per_channel_statistics.std-of-means": vae.latents_std.float().clone(),
        "vae.encoder.conv_in.conv.bias": torch.zeros(4),
    }


def write(path: Path, tensors: dict[str, torch.Tensor], denoiser: Any) -> Path:
    """With the number of heads in the file's own config, as the authors write it."""
    config = {"transformer": {"num_attention_heads": denoiser.config.num_attention_heads}}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    return path


def scaled_fp8(tensors: dict[str, torch.Tensor], ending: str, by_row: bool = False) -> dict[str, torch.Tensor]:
    """Every linear weight in fp8, divided by a scale that stands beside it."""
    scaled: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not (name.endswith(".weight") and tensor.ndim == 2):
            scaled[name] = tensor
            continue
        largest = tensor.float().abs().amax(dim=1 if by_row else (0, 1), keepdim=by_row)
        scale = (largest / 448.0).clamp(min=1e-12)
        scaled[name] = (tensor.float() / scale).to(FP8)
        scaled[name.removesuffix(".weight") + ending] = scale
    return scaled
