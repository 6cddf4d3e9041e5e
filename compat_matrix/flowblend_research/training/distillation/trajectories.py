"""The teacher's trajectories: where the guided sampler stands at the boundaries of eight windows, from noise on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from flowblend_compat_matrix.reference.pair import CALL_DEFAULTS, ReferencePair
from flowblend_compat_matrix.reference.world import caption, sample_scene

from ..text import encode_text
from ..wan.denoisers import LATENT_SHAPE

NUM_WINDOWS = 8
STEPS_PER_WINDOW = 3
SHARD_SIZE = 512
_BATCH = 64
_SEED = 31


@dataclass(frozen=True)
class Trajectories:
    """States ``[N, 9, 12, 3, 8, 8]`` at the noise levels ``sigmas`` (nine, the last of them 0), and their captions."""

    states: torch.Tensor
    captions: list[str]
    sigmas: list[float]


def teacher_scheduler(pair: ReferencePair) -> UniPCMultistepScheduler:
    """The pair's own sampler, at three steps a window."""
    scheduler = cast(UniPCMultistepScheduler, UniPCMultistepScheduler.from_config(pair.pipeline.scheduler.config))
    scheduler.set_timesteps(NUM_WINDOWS * STEPS_PER_WINDOW)
    return scheduler


@torch.no_grad()
def sample_shard(pair: ReferencePair, denoiser: torch.nn.Module, folder: Path, shard: int) -> None:
    """Sample one shard of trajectories and write it; a shard that is there already is left alone.

    Args:
        pair: for its text encoder and its sampler.
        denoiser: the teacher, which may be compiled.
        folder: receives ``trajectories-NNN.safetensors``; the captions are in its metadata.
        shard: seeds captions and noise.
    """
    target = folder / f"trajectories-{shard:03d}.safetensors"
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((_SEED, shard))
    texts = [caption(sample_scene(rng), rng).text for _ in range(SHARD_SIZE)]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    parts = [
        _sample(pair, denoiser, texts[start : start + _BATCH], generator) for start in range(0, SHARD_SIZE, _BATCH)
    ]
    partial = target.with_suffix(".partial")
    save_file({"states": torch.cat(parts).half().contiguous()}, partial, metadata={"captions": "\n".join(texts)})
    partial.replace(target)


def _sample(
    pair: ReferencePair, denoiser: torch.nn.Module, texts: list[str], generator: torch.Generator
) -> torch.Tensor:
    scheduler = teacher_scheduler(pair)
    pipeline = pair.pipeline
    prompts = encode_text(pipeline.tokenizer, pipeline.text_encoder, [*texts, *[""] * len(texts)])
    latents = torch.randn(len(texts), *LATENT_SHAPE, generator=generator)
    states = [latents]
    scale = CALL_DEFAULTS["guidance_scale"]
    for index, timestep in enumerate(scheduler.timesteps):
        both = torch.cat([latents, latents])
        velocity = denoiser(both, timestep.expand(len(both)), prompts, return_dict=False)[0]
        cond, uncond = velocity.chunk(2)
        latents = scheduler.step(uncond + scale * (cond - uncond), timestep, latents, return_dict=False)[0]
        if (index + 1) % STEPS_PER_WINDOW == 0:
            states.append(latents)
    return torch.stack(states, dim=1)


def load_trajectories(folder: Path, sigmas: list[float]) -> Trajectories:
    """Read all shards in ``folder``. Raises `FileNotFoundError` if there is none."""
    from safetensors import safe_open

    paths = sorted(folder.glob("trajectories-*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no trajectories-*.safetensors in {folder}; sample them first")
    captions: list[str] = []
    for path in paths:
        with safe_open(path, "pt") as file:
            captions += (file.metadata() or {})["captions"].split("\n")
    return Trajectories(torch.cat([load_file(path)["states"] for path in paths]), captions, sigmas)


def window_sigmas(pair: ReferencePair, num_steps: int) -> list[float]:
    """Noise levels at the boundaries of ``num_steps`` windows (a divisor of eight), first to last, 0 included."""
    stride = STEPS_PER_WINDOW * NUM_WINDOWS // num_steps
    return [float(sigma) for sigma in teacher_scheduler(pair).sigmas[::stride]]


def teacher_of(pair: ReferencePair, side: str) -> WanTransformer3DModel:
    """The denoiser that is distilled: ``"large"`` or ``"small"``."""
    return pair.pipeline.transformer if side == "large" else pair.small
