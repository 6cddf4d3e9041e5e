"""Tiny LTX pipelines of every class, with the sampler as published for each, and what they are called with."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXImageToVideoPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from flowblend_plugins.testing import tiny_ltx_denoiser, tiny_ltx_pipeline
from tests.exactness.pipelines import FAMILIES, Family, masked_text, still

SIZE = {"height": 32, "width": 32, "num_frames": 17}


def as_0_9_1() -> Any:
    """Scheduler of LTX-Video 0.9.0 and 0.9.1: shift by size, terminal level .1."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip


def _with_scheduler(make: Any, scheduler: Any) -> Any:
    def made() -> Any:
        pipe = make()
        pipe.scheduler = scheduler()
        return pipe

    return made


def _other_class(pipeline_class: Any) -> Any:
    def made() -> Any:
        plain = tiny_ltx_pipeline()
        return pipeline_class(
            scheduler=FlowMatchEulerDiscreteScheduler(), vae=plain.vae, text_encoder=None, tokenizer=None,
            transformer=plain.transformer,
        )  # fmt: skip

    return made


def condition(strength: float, frame_index: int = 0) -> LTXVideoCondition:
    return LTXVideoCondition(image=still(), frame_index=frame_index, strength=strength)


def _arguments(**further: Any) -> Any:
    return lambda batch: masked_text(batch, 16) | SIZE | further


TEXT = Family("ltx", _with_scheduler(tiny_ltx_pipeline, as_0_9_1), tiny_ltx_denoiser, _arguments(), ())
IMAGE = Family("ltx-i2v", _other_class(LTXImageToVideoPipeline), tiny_ltx_denoiser, _arguments(image=still()), ())
CONDITION = Family("ltx-condition", _other_class(LTXConditionPipeline), tiny_ltx_denoiser, _arguments(), ())
CONDITION_IMAGE = dataclasses.replace(
    CONDITION, name="ltx-condition with an image", arguments=_arguments(conditions=[condition(1.0)])
)
CONDITION_SOFT = dataclasses.replace(
    CONDITION,
    name="ltx-condition with strengths below 1",
    arguments=_arguments(conditions=[condition(1.0), condition(0.15, 8)], image_cond_noise_scale=0.0),
)
CONDITION_VIDEO = dataclasses.replace(
    CONDITION,
    name="ltx-condition with a video",
    arguments=_arguments(conditions=[LTXVideoCondition(video=[still()] * 9, frame_index=8, strength=0.7)]),
)
LTX2 = FAMILIES["ltx2"]
ALL = {f.name: f for f in (TEXT, IMAGE, CONDITION, CONDITION_IMAGE, CONDITION_SOFT, CONDITION_VIDEO, LTX2)}


def run(family: Family, pipe: Any, num_inference_steps: int, **overrides: Any) -> torch.Tensor:
    return family.run(pipe, num_inference_steps, **overrides)
