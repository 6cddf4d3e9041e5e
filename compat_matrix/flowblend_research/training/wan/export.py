"""Export of training checkpoints to what ships: `save_pretrained` folders in float16, safetensors only."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from flowblend_compat_matrix.reference.classifier import AttributeClassifier

from ..latents import has_data, load_dataset
from ..stage import load_average
from ..text import TextTrainer
from .codec import latent_statistics, make_codec
from .denoisers import LARGE, SAMPLING_SHIFT, SMALL, make_denoiser


def load_codec(out: Path) -> AutoencoderKLWan:
    """The trained codec, with the statistics of the data's latents in its config once there is data."""
    statistics: tuple[list[float], list[float]] | tuple[None, None] = (None, None)
    if has_data(out / "data"):
        statistics = latent_statistics(load_dataset(out / "data").latents[:4096].float())
    return load_average(make_codec(*statistics), out / "codec")


def load_text(out: Path) -> TextTrainer:
    """The trained text encoder and its tokenizer."""
    return load_average(TextTrainer(), out / "text")


def make_scheduler() -> UniPCMultistepScheduler:
    """The sampler that Wan ships with, at the shift the pair is used with."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SAMPLING_SHIFT, num_train_timesteps=1000
    )


def export(out: Path, weights: Path) -> None:
    """Write ``large/``, ``small/`` and ``classifier/`` into ``weights`` from the checkpoints in ``out``.

    A stage that has not been started is written with its initial weights. The text encoder stays float32: it is
    small, and transformers would otherwise load it as float16 for whoever does not name a type.
    """
    text = load_text(out)
    pipeline = WanPipeline(
        tokenizer=text.tokenizer,  # pyright: ignore[reportArgumentType]
        text_encoder=text.encoder,
        vae=load_codec(out).half(),
        scheduler=make_scheduler(),  # pyright: ignore[reportArgumentType]
        transformer=load_average(make_denoiser(LARGE), out / "large").half(),
    )
    pipeline.save_pretrained(weights / "large", safe_serialization=True)
    load_average(make_denoiser(SMALL), out / "small").half().save_pretrained(weights / "small", safe_serialization=True)
    load_average(AttributeClassifier(), out / "classifier").save(weights / "classifier")
