"""The denoisers' data: world videos encoded once, with several captions each, so that a step costs only itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from flowblend_compat_matrix.reference.world import caption, render, sample_scene

from .codec import encode_mean

CAPTIONS_PER_VIDEO = 4
_SEED = 7


@dataclass(frozen=True)
class LatentDataset:
    """Latents ``[N, 12, 3, 8, 8]`` (normalised once `normalised_by` has been called) and captions of each."""

    latents: torch.Tensor
    captions: list[list[str]]

    def batch(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, list[str]]:
        """``size`` random latents in float32, each with one of its captions."""
        rows = rng.integers(len(self.captions), size=size)
        texts = [self.captions[row][rng.integers(CAPTIONS_PER_VIDEO)] for row in rows]
        return self.latents[torch.from_numpy(rows)].float(), texts


def encode_shard(codec: AutoencoderKLWan, folder: Path, shard: int, num_videos: int, device: torch.device) -> None:
    """Render and encode one shard, and write it; a shard that is there already is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"latents-{shard:03d}.safetensors"
    if target.exists():
        return
    latents: list[torch.Tensor] = []
    captions: list[list[str]] = []
    for start in range(0, num_videos, 16):
        rng = np.random.default_rng((_SEED, shard, start))
        scenes = [sample_scene(rng) for _ in range(min(16, num_videos - start))]
        captions += [[caption(scene, rng).text for _ in range(CAPTIONS_PER_VIDEO)] for scene in scenes]
        videos = torch.from_numpy(np.stack([render(scene) for scene in scenes])).to(device)
        latents.append(encode_mean(codec, videos.permute(0, 4, 1, 2, 3) * 2.0 - 1.0).half().cpu())
    (folder / f"captions-{shard:03d}.json").write_text(json.dumps(captions))
    partial = target.with_suffix(".partial")
    save_file({"latents": torch.cat(latents).contiguous()}, partial)
    partial.replace(target)


def load_dataset(folder: Path) -> LatentDataset:
    """All shards in ``folder``, not yet normalised."""
    latents: list[torch.Tensor] = []
    captions: list[list[str]] = []
    for path in sorted(folder.glob("latents-*.safetensors")):
        latents.append(load_file(path)["latents"])
        captions += json.loads(
            path.with_name(path.name.replace("latents-", "captions-")).with_suffix(".json").read_text()
        )
    if not latents:
        raise FileNotFoundError(f"no latents-*.safetensors in {folder}; run the stage 'data' first")
    return LatentDataset(torch.cat(latents), captions)
