"""Export training checkpoints to `save_pretrained` folders, in float16 and safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline
from safetensors.torch import load_file
from torch import nn

from flowblend_compat_matrix.reference.classifier import AttributeClassifier

from ..latents import has_data, load_dataset
from ..stage import load_average
from .codec import make_codec
from .denoisers import LARGE, SMALL, make_denoiser
from .text import LTXTextTrainer

CLASSIFIER_STRIDE = 1
SHAPED = "codec/shaped.safetensors"


def load_codec(out: Path) -> AutoencoderKLLTXVideo:
    """The trained codec, shaped once that was done, with the statistics of the data's latents once there is data.

    One deviation serves all channels: after shaping, a channel is as large as what it does to the picture.
    """
    codec = load_average(make_codec(), out / "codec")
    if (out / SHAPED).exists():
        codec.load_state_dict(load_file(out / SHAPED))
    if has_data(out / "data"):
        latents = load_dataset(out / "data").latents[:4096].float()
        mean = latents.mean(dim=(0, 2, 3, 4))
        cast(torch.Tensor, codec.latents_mean).copy_(mean)
        cast(torch.Tensor, codec.latents_std).copy_((latents - mean.view(-1, 1, 1, 1)).std().expand_as(mean))
    return codec


def load_text(out: Path) -> LTXTextTrainer:
    """The trained text encoder and its tokenizer."""
    return load_average(LTXTextTrainer(), out / "text")


def make_classifier() -> AttributeClassifier:
    """An untrained judge of videos of 32x32."""
    return AttributeClassifier(stride=CLASSIFIER_STRIDE)


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The sampler that LTX-Video ships with; its shift depends on the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def _half(module: nn.Module) -> Any:
    return nn.Module.half(module)


def export(out: Path, weights: Path) -> None:
    """Write ``large/``, ``small/`` and ``classifier/`` into ``weights`` from the checkpoints in ``out``.

    A stage that has not been started is written with its initial weights. The text encoder stays float32: it is
    small, and transformers would otherwise load it as float16 for whoever does not name a type.
    """
    text = load_text(out)
    pipeline = LTXPipeline(
        scheduler=make_scheduler(),
        vae=_half(load_codec(out)),
        text_encoder=text.encoder,
        tokenizer=cast(Any, text.tokenizer),
        transformer=_half(load_average(make_denoiser(LARGE), out / "large")),
    )
    pipeline.save_pretrained(weights / "large", safe_serialization=True)
    _half(load_average(make_denoiser(SMALL), out / "small")).save_pretrained(weights / "small", safe_serialization=True)
    load_average(make_classifier(), out / "classifier").save(weights / "classifier")
