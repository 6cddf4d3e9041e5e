"""Export of training checkpoints to what ships: `save_pretrained` folders in float16, safetensors only."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from ..latents import has_data, load_dataset
from ..stage import load_average
from .codec import make_codec
from .denoisers import LARGE, SMALL, UNetSize, make_denoiser, make_scheduler
from .text import TextTrainer


def load_codec(out: Path) -> AutoencoderKL:
    """The trained codec, with the scale of the data's latents in its config once there is data."""
    deviation = float(load_dataset(out / "data").latents[:2048].float().std()) if has_data(out / "data") else 1.0
    codec = make_codec(1.0 / deviation)
    load_average(codec, out / "codec")
    return codec


def load_text(out: Path) -> TextTrainer:
    """The trained text encoder and its tokenizer."""
    trainer = TextTrainer()
    load_average(trainer, out / "text")
    return trainer


def _load_denoiser(size: UNetSize, folder: Path) -> UNet2DConditionModel:
    denoiser = make_denoiser(size)
    load_average(denoiser, folder)
    return denoiser


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
        unet=_load_denoiser(LARGE, out / "large").half(),
        scheduler=make_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(weights / "large", safe_serialization=True)
    _load_denoiser(SMALL, out / "small").half().save_pretrained(weights / "small", safe_serialization=True)
