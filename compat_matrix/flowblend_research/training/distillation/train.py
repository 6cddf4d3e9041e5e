"""Distil the reference denoisers to four and to eight steps without guidance.

``python -m flowblend_research.training.distillation.train --out DIR [--minutes N] [--side large] [--job 8]``

A teacher's guided trajectory is cut into windows, and a LoRA on the same denoiser learns, without guidance, the one
Euler step that leads from the first state of a window to its last: piecewise rectified flow (PeRFlow, Yan et al. 2024,
arXiv 2405.07510) with the guidance distilled along (Meng et al. 2022, arXiv 2210.03142). Both step counts learn from
the same trajectories; four steps take two windows at a time.

Jobs: ``trajectories``, then ``8`` and ``4``, then ``export``. What was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from flowblend_compat_matrix.reference.pair import ReferencePair, load_pair
from flowblend_compat_matrix.reference.text import encode_text

from ..stage import LossFunction, Stage, StageRecord, StageSettings
from ..wan.train import compiled
from . import DISTILLED
from .trajectories import NUM_WINDOWS, Trajectories, load_trajectories, sample_shard, teacher_of, window_sigmas

SIDES = ("large", "small")
STEP_COUNTS = (8, 4)
JOBS = ("trajectories", "8", "4", "export")
RANKS = {"large": 32, "small": 64}
TARGETS = (
    r".*\.(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2)|proj_out|"
    r"condition_embedder\.(time_proj|time_embedder\.linear_[12]|text_embedder\.linear_[12])"
)
DEFAULT_MINUTES = 15.0
DEFAULT_SHARDS = 8
_CPU = torch.device("cpu")


class LoraWeights(nn.Module):
    """The trainable weights alone, so that checkpoints and the moving average hold nothing else."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, weight in denoiser.named_parameters() if weight.requires_grad]
        weights = dict(denoiser.named_parameters())
        self.weights = nn.ParameterList([weights[name] for name in self.names])


def add_lora(denoiser: Any, side: str) -> LoraWeights:
    """Put a fresh LoRA on a frozen denoiser."""
    denoiser.requires_grad_(False)
    rank = RANKS[side]
    denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, lora_bias=False))
    return LoraWeights(denoiser)


def window_loss(
    pair: ReferencePair, student: nn.Module, data: Trajectories, num_steps: int, batch_size: int
) -> LossFunction:
    """Mean squared error of the velocity that leads from the first state of a window to its last."""
    stride = NUM_WINDOWS // num_steps
    text = pair.pipeline

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng((37, step))
        rows = rng.integers(len(data.captions), size=batch_size)
        starts = rng.integers(num_steps, size=batch_size) * stride
        first = data.states[rows, starts].float()
        last = data.states[rows, starts + stride].float()
        sigma = torch.tensor([data.sigmas[start] for start in starts])
        width = sigma - torch.tensor([data.sigmas[start + stride] for start in starts])
        with torch.no_grad():
            prompts = encode_text(text.tokenizer, text.text_encoder, [data.captions[row] for row in rows])
        velocity = student(first, 1000.0 * sigma, prompts, return_dict=False)[0]
        return (velocity.float() - (first - last) / width.view(-1, 1, 1, 1, 1)).square().mean()

    return loss


def train(out: Path, side: str, num_steps: int, minutes: float, max_steps: int = 0) -> None:
    """Train one LoRA in this process; ``minutes`` of the wall clock, ``max_steps`` (0: no limit)."""
    torch.manual_seed(0)
    pair = load_pair()
    denoiser = teacher_of(pair, side)
    weights = add_lora(denoiser, side)
    student = compiled(denoiser, _CPU)
    data = load_trajectories(out / f"{side}-trajectories", window_sigmas(pair, NUM_WINDOWS))
    settings = StageSettings(
        minutes=minutes,
        learning_rate=2e-3,
        weight_decay=0.0,
        warmup_steps=50,
        decay_start=0.4,
        ema_half_life_steps=60,
    )
    training = Stage(f"{side}-{num_steps}", weights, out / f"{side}-{num_steps}", settings)
    training.run(window_loss(pair, student, data, num_steps, batch_size=32), _report, max_steps=max_steps)


def _report(record: StageRecord, progress: float) -> None:
    print(f"{record.name}: step {record.steps}, loss {record.loss:.4f}, {100 * progress:.1f} %", flush=True)


def export(out: Path, side: str, num_steps: int, target: Path) -> None:
    """Write one LoRA as diffusers does, in float16, and beside it ``distilled.json``: how it is to be sampled."""
    pair = load_pair()
    denoiser = teacher_of(pair, side)
    weights = add_lora(denoiser, side)
    folder = out / f"{side}-{num_steps}"
    training = Stage(folder.name, weights, folder, StageSettings(minutes=1.0, learning_rate=0.0))
    training.load_average()
    trained = get_peft_model_state_dict(denoiser)
    lora: dict[str, Any] = {name: tensor.half().contiguous() for name, tensor in trained.items()}
    WanPipeline.save_lora_weights(target, transformer_lora_layers=lora)
    facts = {
        "num_inference_steps": num_steps,
        "sigmas": [round(sigma, 6) for sigma in window_sigmas(pair, num_steps)[:-1]],
        "guidance_scale": 1.0,
        "sampler": "euler",
        "training_steps": training.record.steps,
        "training_loss": round(training.record.loss, 5),
    }
    (target / "distilled.json").write_text(json.dumps(facts, indent=2) + "\n")


def run_job(name: str, out: Path, side: str, minutes: float, num_shards: int, target: Path) -> None:
    """Do one job for one denoiser."""
    if name == "trajectories":
        pair = load_pair()
        denoiser = compiled(teacher_of(pair, side), _CPU)
        for shard in range(num_shards):
            sample_shard(pair, denoiser, out / f"{side}-trajectories", shard)
            print(f"{side}: trajectories {shard + 1} of {num_shards}", flush=True)
    elif name == "export":
        for num_steps in STEP_COUNTS:
            export(out, side, num_steps, target / f"{side}-{num_steps}")
    else:
        train(out, side, int(name), minutes)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="flowblend-distil-reference", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for trajectories and checkpoints; resumed")
    parser.add_argument("--weights", type=Path, default=DISTILLED, help="folder for the LoRAs")
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="for each LoRA of the large denoiser")
    parser.add_argument("--shards", type=int, default=DEFAULT_SHARDS, help="how many times 512 trajectories")
    parser.add_argument("--side", choices=SIDES, help="one denoiser only")
    parser.add_argument("--job", choices=JOBS, help="one job only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for side in [arguments.side] if arguments.side else SIDES:
        minutes = arguments.minutes if side == "large" else arguments.minutes / 3.0
        for job in [arguments.job] if arguments.job else JOBS:
            run_job(job, arguments.out, side, minutes, arguments.shards, arguments.weights)


if __name__ == "__main__":
    main()
