"""Loading the trained UNet pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from flowblend_plugins.types import JsonObject

from ..world import SIZE

WEIGHTS = Path(__file__).parent / "weights"

CALL_DEFAULTS: JsonObject = {"height": SIZE, "width": SIZE, "num_inference_steps": 20, "guidance_scale": 7.5}
"""What the pipeline must be called with."""


@dataclass(frozen=True)
class UNetPair:
    """A pipeline with the large UNet, and the small UNet beside it."""

    pipeline: StableDiffusionPipeline
    small: UNet2DConditionModel


def load_unet_pair(root: Path = WEIGHTS) -> UNetPair:
    """Load the pair in float32 on the CPU, in evaluation mode.

    Raises `FileNotFoundError` if ``root`` does not hold ``large/`` and ``small/``.
    """
    for folder in ("large", "small"):
        if not (root / folder).is_dir():
            raise FileNotFoundError(
                f"no trained UNet pair in {root}: {folder}/ is missing; train one with "
                "`python -m flowblend_research.training.unet.train --out DIR` (docs/unet_reference_pair.md)"
            )
    pipeline = StableDiffusionPipeline.from_pretrained(root / "large", dtype=torch.float32)
    small = UNet2DConditionModel.from_pretrained(root / "small", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder, small):
        module.eval()
    return UNetPair(pipeline=pipeline, small=small)
