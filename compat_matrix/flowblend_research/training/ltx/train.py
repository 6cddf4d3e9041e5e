"""Train the LTX pair from nothing, or go on where the last run stopped.

``python -m flowblend_research.training.ltx.train --out DIR [--minutes N] [--device auto]``

Stages: ``codec``, then ``text`` and ``classifier``, then ``data`` (encode the world once), then ``small`` and
``large``. Weights are written to DIR/weights unless ``--weights`` says otherwise; see :mod:`..trainer`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from flowblend_compat_matrix.reference.ltx.world import LTX_WORLD

from ..classifying import classifying
from ..latents import LatentDataset, denoising, drawing, encode_shard, load_dataset
from ..stage import LossFunction, StageSettings, compiled, move
from ..text import caption_batch
from ..trainer import Job, Recipe, main
from .codec import codec_batch, codec_loss, encode_mean, make_codec, normalise, prepare_for_training, use_fast_norms
from .denoisers import LARGE, SMALL, flow_matching_loss, make_denoiser
from .export import SHAPED, export, load_codec, load_text, make_classifier
from .shaping import write_shaped
from .text import LTXTextTrainer, encode_text

SHARD_SIZE = 1024
_MUON = StageSettings(
    learning_rate=2e-3, matrix_learning_rate=0.02, weight_decay=0.0, warmup_steps=30, decay_start=0.4,
    ema_half_life_steps=60,
)  # fmt: skip
_DENOISER = StageSettings(learning_rate=1e-3, matrix_learning_rate=0.02, warmup_steps=100, ema_half_life_steps=300)
SETTINGS = {
    "codec": _MUON,
    "text": StageSettings(learning_rate=2e-3, warmup_steps=100, decay_start=0.35, ema_half_life_steps=50),
    "classifier": _MUON,
    "small": _DENOISER,
    "large": _DENOISER,
}


def _codec(job: Job) -> tuple[nn.Module, LossFunction]:
    codec = move(prepare_for_training(make_codec()), job.device)
    use_fast_norms(codec)
    size = 8 if job.device.type == "cpu" else 32
    return codec, lambda step: codec_loss(codec, codec_batch(step, 1 + 10 * job.rank, size, job.device), step)


def _text(job: Job) -> tuple[nn.Module, LossFunction]:
    trainer = LTXTextTrainer().to(job.device)
    return trainer, lambda step: trainer.loss(caption_batch((3, step), 128))[0]


def _classifier(job: Job) -> tuple[nn.Module, LossFunction]:
    classifier = make_classifier()
    return classifier, classifying(job, classifier, load_codec(job.out), LTX_WORLD, max_blur=0.5)


def _denoiser(job: Job) -> tuple[nn.Module, LossFunction]:
    denoiser = move(make_denoiser(LARGE if job.name == "large" else SMALL), job.device)
    faster = compiled(denoiser, job.device)
    codec, text, raw = load_codec(job.out), load_text(job.out).to(job.device), load_dataset(job.out / "data")
    data = LatentDataset(normalise(codec, raw.latents.float()).half().to(job.device), raw.captions)
    return denoiser, denoising(
        job,
        data,
        lambda texts: encode_text(text.tokenizer, text.encoder, texts),
        lambda tokens, prompts, generator: flow_matching_loss(faster, tokens, *prompts, generator),
        in_bfloat16=job.device.type == "cuda",
    )


def _data(job: Job) -> Callable[[int], None]:
    codec = load_codec(job.out)
    if not (job.out / SHAPED).exists():
        write_shaped(codec, job.out / SHAPED)
    codec = move(codec, job.device)
    use_fast_norms(codec)

    def encode(videos: torch.Tensor) -> torch.Tensor:
        return encode_mean(codec, videos.to(job.device))

    return lambda shard: encode_shard(job.folder, shard, SHARD_SIZE, drawing(LTX_WORLD), encode)


RECIPE = Recipe(
    module="flowblend_research.training.ltx.train",
    phases=(("codec",), ("text", "classifier"), ("data",), ("small", "large")),
    modules={"codec": _codec, "text": _text, "classifier": _classifier, "small": _denoiser, "large": _denoiser},
    settings=SETTINGS,
    shares={"codec": 0.03, "text": 0.005, "classifier": 0.01, "small": 0.25, "large": 0.65},
    data={"data": _data},
    export=export,
    minutes=400.0,
    num_shards=32,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
