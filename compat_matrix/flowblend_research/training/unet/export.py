"""Export of training checkpoints to what ships: `save_pretrained` folders in float16, safetensors only."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline

from ..latents import has_data, load_dataset
from ..stage import load_average
from .codec import make_codec
from .denoisers import LARGE, SMALL, make_denoiser, make_scheduler
from .text import TextTrainer


def load_codec(out: Path) -> AutoencoderKL:
    """The trained codec, with the scale of the data's latents in its config once there is data."""
    deviation = float(load_dataset(out / "data").latents[:2048].float().std()) if has_data(out / "data") else 1.0
    return load_average(make_codec(1.0 / deviation), out / "codec")


def load_text(out: Path) -> TextTrainer:
    """The trained text encoder and its tokenizer."""
    return load_average(TextTrainer(), out / "text")


def export(out: Path, weights: Path) -> None:
    """Write ``large/`` (a whole pipeline) and ``small/`` (a UNet) into ``weights`` from the checkpoints in ``out``.

    A stage that has not been started is written with its initial weights. The text encoder stays float32: it is
    small, and transformers would otherwise load it as float16 for whoever does not name a type.
    """
    text = load_text(out)
    pipeline = StableDiffusionPipeline(
        vae=load_codec(out).half(),
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
        unet=load_average(make_denoiser(LARGE), out / "large").half(),
        scheduler=make_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(weights / "large", safe_serialization=True)
    load_average(make_denoiser(SMALL), out / "small").half().save_pretrained(weights / "small", safe_serialization=True)
