"""Tiny LTX models in a hub cache under the names and in the layouts in which the real ones are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from flowblend_plugins.testing import tiny_ltx_denoiser, tiny_ltx_pipeline
from tests.ltx.files import authors_tensors, vae_tensors, write

COMMIT = "0" * 40


def _snapshot(hub: Path, repository: str) -> Path:
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def _text_encoder() -> dict[str, Any]:
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "cat": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        encoder = T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    return {"text_encoder": encoder.eval(), "tokenizer": fast}


def lay_out(hub: Path) -> None:
    """Write all that the three LTX presets name into a hub cache folder."""
    vae, text = tiny_ltx_pipeline().vae, _text_encoder()
    large_dev, large_0_9_8, large_distilled = (tiny_ltx_denoiser(seed, layers=2, heads=2) for seed in (0, 1, 2))
    small, distilled = tiny_ltx_denoiser(3), tiny_ltx_denoiser(4)

    def pipeline(repository: str, denoiser: Any) -> None:
        made = LTXConditionPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=denoiser, **text)
        made.save_pretrained(_snapshot(hub, repository))

    pipeline("Lightricks/LTX-Video-0.9.7-dev", large_dev)
    pipeline("Lightricks/LTX-Video-0.9.5", small)
    pipeline("Lightricks/LTX-Video-0.9.8-13B-distilled", large_distilled)
    files = _snapshot(hub, "Lightricks/LTX-Video")
    for name, denoiser in (("ltxv-13b-0.9.8-dev", large_0_9_8), ("ltxv-2b-0.9.8-distilled", distilled)):
        write(files / f"{name}.safetensors", authors_tensors(denoiser) | vae_tensors(vae), denoiser)
