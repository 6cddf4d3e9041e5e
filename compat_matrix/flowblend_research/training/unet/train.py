"""Train the UNet pair from nothing, or go on where the last run stopped.

``python -m flowblend_research.training.unet.train --out DIR [--minutes N] [--job NAME]``

Stages: ``codec`` and ``text``, then ``data`` (encode the stills once), then ``large`` and ``small``; the weights go
into DIR/weights. See :mod:`..trainer`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from flowblend_compat_matrix.reference.world import NUM_FRAMES, Video, caption, render, sample_scene

from ..latents import CAPTIONS_PER_VIDEO, denoising, encode_shard, load_dataset
from ..stage import LossFunction, StageSettings, move
from ..text import caption_batch
from ..trainer import Job, Recipe, main
from .codec import codec_loss, encode_mean, make_codec, prepare_for_training, still_batch
from .denoisers import LARGE, SMALL, make_denoiser, noise_loss
from .export import export, load_codec, load_text
from .text import TextTrainer, encode_text

SHARD_SIZE = 512
_DENOISER = StageSettings(
    learning_rate=1e-3, matrix_learning_rate=0.02, weight_decay=0.0, warmup_steps=30, decay_start=0.4,
    ema_half_life_steps=60,
)  # fmt: skip
SETTINGS = {
    "codec": StageSettings(
        learning_rate=2e-3, matrix_learning_rate=0.02, weight_decay=0.0, warmup_steps=30, decay_start=0.4,
        ema_half_life_steps=60,
    ),
    "text": StageSettings(learning_rate=2e-3, warmup_steps=50, decay_start=0.35, ema_half_life_steps=30),
    "large": _DENOISER,
    "small": _DENOISER,
}  # fmt: skip


def _codec(job: Job) -> tuple[nn.Module, LossFunction]:
    codec = move(prepare_for_training(make_codec()), job.device)
    size = 16 if job.device.type == "cpu" else 64
    seed = 1 + 10 * job.rank
    return codec, lambda step: codec_loss(codec, still_batch((seed, step), size).to(job.device), step)


def _text(job: Job) -> tuple[nn.Module, LossFunction]:
    trainer = TextTrainer().to(job.device)
    return trainer, lambda step: trainer.loss(caption_batch((3, step), 128))


def _denoiser(job: Job) -> tuple[nn.Module, LossFunction]:
    denoiser = move(make_denoiser(LARGE if job.name == "large" else SMALL), job.device)
    text, scaling_factor = load_text(job.out).to(job.device), load_codec(job.out).config["scaling_factor"]
    return denoiser, denoising(
        job,
        load_dataset(job.out / "data"),
        lambda texts: encode_text(text.tokenizer, text.encoder, texts),
        lambda latents, prompts, generator: noise_loss(denoiser, latents * scaling_factor, prompts, generator),
        in_bfloat16=True,
    )


def draw(rng: np.random.Generator) -> tuple[Video, list[str]]:
    """The middle frame of a video of the world, and captions of it."""
    scene = sample_scene(rng)
    middle = render(scene)[NUM_FRAMES // 2 : NUM_FRAMES // 2 + 1]
    return middle, [caption(scene, rng).text for _ in range(CAPTIONS_PER_VIDEO)]


def _data(job: Job) -> Callable[[int], None]:
    codec = move(load_codec(job.out), job.device)

    def encode(stills: torch.Tensor) -> torch.Tensor:
        return encode_mean(codec, stills[:, :, 0].to(job.device))

    return lambda shard: encode_shard(job.folder, shard, SHARD_SIZE, draw, encode, seed=17)


RECIPE = Recipe(
    module="flowblend_research.training.unet.train",
    phases=(("codec", "text"), ("data",), ("large", "small")),
    modules={"codec": _codec, "text": _text, "large": _denoiser, "small": _denoiser},
    settings=SETTINGS,
    shares={"codec": 0.28, "text": 0.03, "large": 0.7, "small": 0.4},
    data={"data": _data},
    export=export,
    minutes=65.0,
    num_shards=16,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
