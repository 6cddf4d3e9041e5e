"""Train the LTX pair from nothing, or go on where the last run stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from flowblend_compat_matrix.reference.stage import LossFunction, Stage, StageRecord, StageSettings
from flowblend_compat_matrix.reference.text import caption_batch

from .codec import codec_batch, codec_loss, make_codec, prepare_for_training, use_fast_norms
from .text import LTXTextTrainer


def settings_for(name: str, minutes: float) -> StageSettings:
    """How each stage is trained."""
    if name == "codec":
        return StageSettings(
            minutes=minutes,
            learning_rate=2e-3,
            matrix_learning_rate=0.02,
            weight_decay=0.0,
            warmup_steps=30,
            decay_start=0.4,
            ema_half_life_steps=60,
        )
    if name == "text":
        return StageSettings(
            minutes=minutes, learning_rate=2e-3, warmup_steps=100, decay_start=0.35, ema_half_life_steps=50
        )
    return StageSettings(minutes=minutes, learning_rate=1e-3, matrix_learning_rate=0.02, warmup_steps=100)


def _codec(out: Path) -> tuple[torch.nn.Module, LossFunction]:
    codec = prepare_for_training(make_codec())
    use_fast_norms(codec)
    device = torch.device("cpu")
    return codec, lambda step: codec_loss(codec, codec_batch(step, 1, 8, device), step)


def _text(out: Path) -> tuple[torch.nn.Module, LossFunction]:
    trainer = LTXTextTrainer()
    return trainer, lambda step: trainer.loss(caption_batch((3, step), 128))[0]


_BUILDERS = {"codec": _codec, "text": _text}


def _report(record: StageRecord, progress: float) -> None:
    print(f"{record.name}: step {record.steps}, loss {record.loss:.4f}, {100 * progress:.1f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, loss = _BUILDERS[arguments.job](arguments.out)
    training = Stage(arguments.job, module, arguments.out / arguments.job, settings_for(arguments.job, arguments.minutes))
    torch.manual_seed(1000 * training.record.steps)
    training.run(loss, _report)


if __name__ == "__main__":
    main()
