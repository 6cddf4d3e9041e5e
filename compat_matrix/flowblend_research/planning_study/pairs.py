"""The pairs that predictions are tried on: a pipeline of the large denoiser, and calls with prompts of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import cast

import torch

from flowblend_compat_matrix.reference.pair import WEIGHTS, evaluation_captions, load_pair
from flowblend_plugins.types import Keywords, KeywordsView, Pipeline, Scheduler

FIRST_CALIBRATION_PROMPT, FIRST_PROMPT = 700, 400
CALIBRATION_SEED, SEED = 130_000, 110_000
"""Captions and noise that neither the frontier nor the shipped moments have."""


def load_wan() -> tuple[Pipeline, Keywords]:
    """The Wan pair's large denoiser: UniPC, 20 steps, guidance 8."""
    from flowblend_compat_matrix.reference import CALL_DEFAULTS

    return load_pair().pipeline, dict(CALL_DEFAULTS)


def load_distilled() -> tuple[Pipeline, Keywords]:
    """The Wan pair's large denoiser with its distilled LoRA: Euler's method at 8 noise levels, guidance off."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe, call = load_wan()
    folder = WEIGHTS.parent / "distilled" / "large-8"
    sigmas = json.loads((folder / "distilled.json").read_text())["sigmas"]
    pipe.load_lora_weights(folder)
    scheduler = cast(Scheduler, FlowMatchEulerDiscreteScheduler(shift=1.0))
    set_timesteps = scheduler.set_timesteps
    scheduler.set_timesteps = lambda num_inference_steps, device=None: set_timesteps(sigmas=sigmas, device=device)
    pipe.register_modules(scheduler=scheduler)
    return pipe, call | {"num_inference_steps": 8, "guidance_scale": 1.0}


def load_unet() -> tuple[Pipeline, Keywords]:
    """The UNet pair's large denoiser: it predicts noise, DDIM, 20 steps, both guidance branches in one call."""
    from flowblend_compat_matrix.reference.unet.pair import CALL_DEFAULTS, load_unet_pair

    return load_unet_pair().pipeline, dict(CALL_DEFAULTS)


PAIRS: Mapping[str, Callable[[], tuple[Pipeline, Keywords]]] = {
    "wan": load_wan,
    "wan-distilled": load_distilled,
    "unet": load_unet,
}


def calls_of(call: KeywordsView, first_prompt: int, seed: int, number: int, **changes: object) -> list[Keywords]:
    """Keyword arguments of a generation for each of so many captions."""
    captions = evaluation_captions(first_prompt + number)[first_prompt:]
    return [
        {**call, "prompt": caption.text, "generator": torch.Generator().manual_seed(seed + index), **changes}
        for index, caption in enumerate(captions)
    ]
