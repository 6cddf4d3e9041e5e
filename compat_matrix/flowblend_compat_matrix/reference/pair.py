"""Loading the trained pair, its judge, and the prompts and videos it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from numpy.typing import NDArray

from flowblend_plugins.types import JsonObject

from .classifier import AttributeClassifier
from .world import NUM_FRAMES, SIZE, WORLD, Caption, World, caption

WEIGHTS = Path(__file__).parent / "weights"

CALL_DEFAULTS: JsonObject = {
    "height": SIZE,
    "width": SIZE,
    "num_frames": NUM_FRAMES,
    "num_inference_steps": 20,
    "guidance_scale": 8.0,
    "max_sequence_length": 32,
}
"""What the pipeline must be called with; it was trained at this size and with prompts padded to 32 tokens."""


@dataclass(frozen=True)
class ReferencePair:
    """A pipeline with the large denoiser, and the small denoiser beside it."""

    pipeline: WanPipeline
    small: WanTransformer3DModel


def load_pair(root: Path = WEIGHTS) -> ReferencePair:
    """Load the pair in float32 on the CPU, in evaluation mode.

    Raises `FileNotFoundError` if ``root`` does not hold ``large/`` and ``small/``.
    """
    for folder in ("large", "small"):
        if not (root / folder).is_dir():
            raise FileNotFoundError(
                f"no trained reference pair in {root}: {folder}/ is missing; see `make train-reference`"
            )
    pipeline = WanPipeline.from_pretrained(root / "large", dtype=torch.float32)
    small = WanTransformer3DModel.from_pretrained(root / "small", dtype=torch.float32)
    for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, small):
        module.eval()
    return ReferencePair(pipeline=pipeline, small=small)


def load_classifier(root: Path = WEIGHTS / "classifier") -> AttributeClassifier:
    """Load the attribute classifier, float32 on the CPU."""
    return AttributeClassifier.load(root)


def evaluation_captions(num: int, seed: int = 1000, world: World = WORLD) -> list[Caption]:
    """Captions of ``num`` scenes that no training saw; the first ones are the same for every ``num``."""
    captions = []
    for index in range(num):
        rng = np.random.default_rng((seed, index))
        captions.append(caption(world.sample_scene(rng), rng))
    return captions


def held_out_videos(num: int, seed: int = 2000, world: World = WORLD) -> NDArray[np.float32]:
    """World videos that no training saw: ``[num, 9, 64, 64, 3]`` float32 in 0..1 (for the first world)."""
    scenes = [world.sample_scene(np.random.default_rng((seed, index))) for index in range(num)]
    return np.stack([world.render(scene) for scene in scenes])
