"""The denoisers' data: stills encoded once, with several captions each, so that a step costs only itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from flowblend_compat_matrix.reference.world import caption, sample_scene

from .codec import encode_mean, stills

CAPTIONS_PER_STILL = 4
SHARD_SIZE = 512
_SEED = 17


@dataclass(frozen=True)
class StillDataset:
    """Latents ``[N, 4, 16, 16]``, as the codec gives them, and captions of each."""

    latents: torch.Tensor
    captions: list[list[str]]

    def batch(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, list[str]]:
        """``size`` random latents in float32, each with one of its captions."""
        rows = rng.integers(len(self.captions), size=size)
        texts = [self.captions[row][rng.integers(CAPTIONS_PER_STILL)] for row in rows]
        return self.latents[torch.from_numpy(rows)].float(), texts


def encode_shard(codec: AutoencoderKL, folder: Path, shard: int) -> None:
    """Render and encode one shard, and write it; a shard that is there already is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"latents-{shard:03d}.safetensors"
    if target.exists():
        return
    rng = np.random.default_rng((_SEED, shard))
    scenes = [sample_scene(rng) for _ in range(SHARD_SIZE)]
    captions = [[caption(scene, rng).text for _ in range(CAPTIONS_PER_STILL)] for scene in scenes]
    device = codec.device
    latents = [
        encode_mean(codec, stills(scenes[start : start + 32]).to(device)).half().cpu()
        for start in range(0, SHARD_SIZE, 32)
    ]
    (folder / f"captions-{shard:03d}.json").write_text(json.dumps(captions))
    partial = target.with_suffix(".partial")
    save_file({"latents": torch.cat(latents).contiguous()}, partial)
    partial.replace(target)


def load_dataset(folder: Path) -> StillDataset:
    """All shards in ``folder``."""
    paths = sorted(folder.glob("latents-*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no latents-*.safetensors in {folder}; run the stage 'data' first")
    captions: list[list[str]] = []
    for path in paths:
        captions += json.loads((folder / f"captions-{path.stem.removeprefix('latents-')}.json").read_text())
    return StillDataset(torch.cat([load_file(path)["latents"] for path in paths]), captions)
