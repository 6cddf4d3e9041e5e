"""Draw world videos encoded once, each with several captions, so that a training step costs only itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from flowblend_compat_matrix.reference.world import Video, World, caption

from .stage import LossFunction
from .trainer import Job

CAPTIONS_PER_VIDEO = 4
CAPTION_DROPOUT = 0.1
_BATCH = 16
Prompts = TypeVar("Prompts")


@dataclass(frozen=True)
class LatentDataset:
    """Latents ``[N, ...]`` as the codec gives them or normalised, and captions of each."""

    latents: torch.Tensor
    captions: list[list[str]]

    def batch(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, list[str]]:
        """``size`` random latents in float32, each with one of its captions."""
        rows = rng.integers(len(self.captions), size=size)
        texts = [self.captions[row][rng.integers(CAPTIONS_PER_VIDEO)] for row in rows]
        return self.latents[torch.from_numpy(rows)].float(), texts


def encode_shard(
    folder: Path,
    shard: int,
    num_videos: int,
    draw: Callable[[np.random.Generator], tuple[NDArray[np.float32], list[str]]],
    encode: Callable[[torch.Tensor], torch.Tensor],
    seed: int = 7,
) -> None:
    """Render and encode one shard, and write it; a shard that is there already is left alone.

    Args:
        folder: receives ``latents-NNN.safetensors`` and ``captions-NNN.json``.
        shard: number of the shard, which seeds it together with ``seed``.
        num_videos: that it holds.
        draw: gives a video ``[F, H, W, 3]`` in 0..1 and ``CAPTIONS_PER_VIDEO`` captions of it.
        encode: latents of videos ``[B, 3, F, H, W]`` in -1..1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"latents-{shard:03d}.safetensors"
    if target.exists():
        return
    latents: list[torch.Tensor] = []
    captions: list[list[str]] = []
    for start in range(0, num_videos, _BATCH):
        rng = np.random.default_rng((seed, shard, start))
        drawn = [draw(rng) for _ in range(min(_BATCH, num_videos - start))]
        captions += [texts for _, texts in drawn]
        videos = torch.from_numpy(np.stack([video for video, _ in drawn])).permute(0, 4, 1, 2, 3) * 2.0 - 1.0
        latents.append(encode(videos.contiguous()).half().cpu())
    (folder / f"captions-{shard:03d}.json").write_text(json.dumps(captions))
    partial = target.with_suffix(".partial")
    save_file({"latents": torch.cat(latents).contiguous()}, partial)
    partial.replace(target)


def drawing(world: World) -> Callable[[np.random.Generator], tuple[Video, list[str]]]:
    """Function that draws one video of a world, and captions of it."""

    def draw(rng: np.random.Generator) -> tuple[Video, list[str]]:
        scene = world.sample_scene(rng)
        return world.render(scene), [caption(scene, rng).text for _ in range(CAPTIONS_PER_VIDEO)]

    return draw


def has_data(folder: Path) -> bool:
    """Whether any shard has been written."""
    return any(folder.glob("latents-*.safetensors"))


def load_dataset(folder: Path) -> LatentDataset:
    """Read all shards in ``folder``, as the codec gave them.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted(folder.glob("latents-*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no latents-*.safetensors in {folder}; run the stage 'data' first")
    captions: list[list[str]] = []
    for path in paths:
        captions += json.loads((folder / f"captions-{path.stem.removeprefix('latents-')}.json").read_text())
    return LatentDataset(torch.cat([load_file(path)["latents"] for path in paths]), captions)


def denoising(
    job: Job,
    data: LatentDataset,
    encode_text: Callable[[list[str]], Prompts],
    loss: Callable[[torch.Tensor, Prompts, torch.Generator], torch.Tensor],
    in_bfloat16: bool,
) -> LossFunction:
    """The loss of a denoiser on random videos, a tenth of them without their captions.

    Args:
        job: the stage.
        data: videos and captions.
        encode_text: embeddings of captions.
        loss: of latents on the job's device, embeddings, and a generator on the CPU.
        in_bfloat16: the denoiser computes in bfloat16 where that is safe.
    """
    size = 32 if job.device.type == "cpu" else 256

    def at_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng((11, step, job.rank))
        latents, texts = data.batch(rng, size)
        texts = ["" if rng.random() < CAPTION_DROPOUT else one for one in texts]
        with torch.no_grad():
            prompts = encode_text(texts)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        with torch.autocast(job.device.type, torch.bfloat16, enabled=in_bfloat16):
            return loss(latents.to(job.device), prompts, generator)

    return at_step
