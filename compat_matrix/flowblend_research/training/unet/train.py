"""Train the UNet pair from nothing, or go on where the last run stopped.

``python -m flowblend_research.training.unet.train --out DIR [--minutes N] [--job NAME]``

Stages, one after the other in this process: ``codec``, ``text``, ``data`` (encode the stills once), ``large``,
``small``, then ``export`` into DIR/weights. Each stage keeps its checkpoint in a folder of its own in DIR; a stage that
is complete is not run again, and one that was stopped goes on. On the CPU all of it runs in one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from flowblend_compat_matrix.reference.text import caption_batch

from ..stage import LossFunction, Stage, StageRecord, StageSettings, move
from .codec import codec_loss, make_codec, prepare_for_training, still_batch
from .dataset import encode_shard, load_dataset
from .denoisers import CAPTION_DROPOUT, LARGE, SMALL, make_denoiser, noise_loss
from .export import export, load_codec, load_text
from .text import TextTrainer, encode_text

DEFAULT_MINUTES = 90.0
SHARES = {"codec": 0.2, "text": 0.02, "large": 0.5, "small": 0.28}
"""Each stage's share of the minutes. The data takes what it takes."""
DEFAULT_SHARDS = 16


def settings_for(name: str, minutes: float) -> StageSettings:
    """How each stage is trained."""
    if name == "text":
        return StageSettings(
            minutes=minutes, learning_rate=2e-3, warmup_steps=50, decay_start=0.35, ema_half_life_steps=30
        )
    return StageSettings(
        minutes=minutes,
        learning_rate=2e-3 if name == "codec" else 1e-3,
        matrix_learning_rate=0.02,
        weight_decay=0.0,
        warmup_steps=30,
        decay_start=0.4,
        ema_half_life_steps=60,
    )


def _codec(out: Path, device: torch.device) -> tuple[torch.nn.Module, LossFunction]:
    codec = move(prepare_for_training(make_codec()), device)
    size = 16 if device.type == "cpu" else 64
    return codec, lambda step: codec_loss(codec, still_batch((1, step), size).to(device), step)


def _text(out: Path, device: torch.device) -> tuple[torch.nn.Module, LossFunction]:
    trainer = TextTrainer().to(device)
    return trainer, lambda step: trainer.loss(caption_batch((3, step), 128))


def _denoiser(name: str) -> Callable[[Path, torch.device], tuple[torch.nn.Module, LossFunction]]:
    def build(out: Path, device: torch.device) -> tuple[torch.nn.Module, LossFunction]:
        denoiser = move(make_denoiser(LARGE if name == "large" else SMALL), device)
        text, data = load_text(out).to(device), load_dataset(out / "data")
        scaling_factor = load_codec(out).config["scaling_factor"]
        size = 32 if device.type == "cpu" else 256

        def loss(step: int) -> torch.Tensor:
            rng = np.random.default_rng((11, step))
            latents, texts = data.batch(rng, size)
            texts = ["" if rng.random() < CAPTION_DROPOUT else one for one in texts]
            with torch.no_grad():
                prompts = encode_text(text.tokenizer, text.encoder, texts)
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            with torch.autocast(device.type, torch.bfloat16):
                return noise_loss(denoiser, latents.to(device) * scaling_factor, prompts, generator)

        return denoiser, loss

    return build


_BUILDERS = {"codec": _codec, "text": _text, "large": _denoiser("large"), "small": _denoiser("small")}
JOBS = ("codec", "text", "data", "large", "small", "export")


def _report(record: StageRecord, progress: float) -> None:
    print(f"{record.name}: step {record.steps}, loss {record.loss:.4f}, {100 * progress:.1f} %", flush=True)


def run_job(name: str, out: Path, minutes: float, device: torch.device, num_shards: int, max_steps: int = 0) -> None:
    """Do one stage; ``minutes`` and ``max_steps`` (0: no limit) are of stages that train."""
    torch.manual_seed(0)
    if name == "export":
        export(out, out / "weights")
    elif name == "data":
        codec = move(load_codec(out), device)
        for shard in range(num_shards):
            encode_shard(codec, out / "data", shard)
            print(f"data: {shard + 1} of {num_shards} shards", flush=True)
    else:
        module, loss = _BUILDERS[name](out, device)
        training = Stage(name, module, out / name, settings_for(name, minutes))
        torch.manual_seed(1000 * training.record.steps)
        training.run(loss, _report, max_steps=max_steps)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="flowblend-train-unet-pair", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and data; resumed if it exists")
    parser.add_argument("--minutes", type=float, help="time for all stages, or for the one of --job")
    parser.add_argument("--job", choices=JOBS, help="run one stage only")
    parser.add_argument("--shards", type=int, default=DEFAULT_SHARDS, help="how many times 512 stills to encode")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args()
    name = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    device = torch.device(name)
    if device.type == "cpu":
        torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    minutes = DEFAULT_MINUTES if arguments.minutes is None else arguments.minutes
    for job in [arguments.job] if arguments.job else JOBS:
        share = 1.0 if arguments.job else SHARES.get(job, 0.0)
        run_job(job, arguments.out, minutes * share, device, arguments.shards)


if __name__ == "__main__":
    main()
