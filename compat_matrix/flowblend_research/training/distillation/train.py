"""Distil the reference denoisers to four and to eight steps without guidance.

``python -m flowblend_research.training.distillation.train --out DIR [--minutes N] [--job large-8]``

A teacher's guided trajectory is cut into windows, and a LoRA on the same denoiser learns, without guidance, the one
Euler step that leads from the first state of a window to its last: piecewise rectified flow (PeRFlow, Yan et al. 2024,
arXiv 2405.07510) with the guidance distilled along (Meng et al. 2022, arXiv 2210.03142). Both step counts learn from
the same trajectories; four steps take two windows at a time.

Stages: ``large-trajectories`` and ``small-trajectories``, then ``large-8`` and ``small-8``, then ``large-4`` and
``small-4``; see :mod:`..trainer`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from flowblend_compat_matrix.reference.pair import ReferencePair, load_pair

from ..stage import LossFunction, StageRecord, StageSettings, compiled, load_average
from ..text import encode_text
from ..trainer import Job, Recipe, main
from . import DISTILLED
from .trajectories import NUM_WINDOWS, Trajectories, load_trajectories, sample_shard, teacher_of, window_sigmas

SIDES = ("large", "small")
STEP_COUNTS = (8, 4)
RANKS = {"large": 32, "small": 64}
TARGETS = (
    r".*\.(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2)|proj_out|"
    r"condition_embedder\.(time_proj|time_embedder\.linear_[12]|text_embedder\.linear_[12])"
)
SETTINGS = StageSettings(learning_rate=2e-3, weight_decay=0.0, warmup_steps=50, decay_start=0.4, ema_half_life_steps=60)


class LoraWeights(nn.Module):
    """The trainable weights alone, so that checkpoints and the moving average hold nothing else."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, weight in denoiser.named_parameters() if weight.requires_grad]
        weights = dict(denoiser.named_parameters())
        self.weights = nn.ParameterList([weights[name] for name in self.names])


def add_lora(denoiser: WanTransformer3DModel, side: str) -> LoraWeights:
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


def _student(job: Job) -> tuple[nn.Module, LossFunction]:
    side, _, num_steps = job.name.partition("-")
    pair = load_pair()
    denoiser = teacher_of(pair, side)
    weights = add_lora(denoiser, side)
    data = load_trajectories(job.out / f"{side}-trajectories", window_sigmas(pair, NUM_WINDOWS))
    return weights, window_loss(pair, compiled(denoiser, job.device), data, int(num_steps), batch_size=32)


def _trajectories(job: Job) -> Callable[[int], None]:
    pair = load_pair()
    denoiser = compiled(teacher_of(pair, job.name.partition("-")[0]), job.device)
    return partial(sample_shard, pair, denoiser, job.folder)


def export(out: Path, target: Path) -> None:
    """Write every LoRA into a folder of ``target``."""
    for side in SIDES:
        for num_steps in STEP_COUNTS:
            export_lora(out, side, num_steps, target / f"{side}-{num_steps}")


def export_lora(out: Path, side: str, num_steps: int, target: Path) -> None:
    """Write one LoRA as diffusers does, in float16, and beside it ``distilled.json``: how it is to be sampled."""
    pair = load_pair()
    denoiser = teacher_of(pair, side)
    weights = add_lora(denoiser, side)
    folder = out / f"{side}-{num_steps}"
    load_average(weights, folder)
    record = StageRecord(**json.loads((folder / "record.json").read_text()))
    trained = get_peft_model_state_dict(denoiser)
    lora = {name: tensor.half().contiguous() for name, tensor in trained.items()}
    WanPipeline.save_lora_weights(target, transformer_lora_layers=lora)  # pyright: ignore[reportArgumentType]
    facts = {
        "num_inference_steps": num_steps,
        "sigmas": [round(sigma, 6) for sigma in window_sigmas(pair, num_steps)[:-1]],
        "guidance_scale": 1.0,
        "sampler": "euler",
        "training_steps": record.steps,
        "training_loss": round(record.loss, 5),
    }
    (target / "distilled.json").write_text(json.dumps(facts, indent=2) + "\n")


_PHASES = tuple(tuple(f"{side}-{what}" for side in SIDES) for what in ("trajectories", *STEP_COUNTS))
RECIPE = Recipe(
    module="flowblend_research.training.distillation.train",
    phases=_PHASES,
    modules={name: _student for phase in _PHASES[1:] for name in phase},
    settings={name: SETTINGS for phase in _PHASES[1:] for name in phase},
    shares={name: 0.5 if name.startswith("large") else 1 / 6 for phase in _PHASES[1:] for name in phase},
    data=dict.fromkeys(_PHASES[0], _trajectories),
    export=export,
    minutes=30.0,
    num_shards=8,
    weights=DISTILLED,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
