"""Small random LoRAs and checkpoints on disk, as diffusers writes them and as Wan's own tools do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYTHING = (*ATTENTION, "ffn.net.0.proj", "ffn.net.2")


def write_lora(
    folder: Path, pipeline_class: Any, denoiser: Any, seed: int, targets: tuple[str, ...] = ATTENTION
) -> str:
    """A LoRA of rank 2 for a fresh denoiser, with both of its matrices random; gives its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, lora_alpha=2, target_modules=list(targets), init_lora_weights=False)
        denoiser.add_adapter(config)
    pipeline_class.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(denoiser))
    return str(folder)


def write_original_wan_lora(path: Path, seed: int, width: int, num_blocks: int) -> str:
    """A LoRA on the self-attention of Wan under the names of Wan's own code, as LightX2V and CausVid publish theirs."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in range(num_blocks):
        for layer in ("q", "k", "v", "o"):
            name = f"diffusion_model.blocks.{block}.self_attn.{layer}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, width, generator=generator)
            tensors[f"{name}.lora_up.weight"] = torch.randn(width, 2, generator=generator)
    save_file(tensors, path)
    return str(path)


def write_denoiser(folder: Path, denoiser: Any) -> str:
    """A whole denoiser, as ``save_pretrained`` writes it."""
    denoiser.save_pretrained(folder)
    return str(folder)
