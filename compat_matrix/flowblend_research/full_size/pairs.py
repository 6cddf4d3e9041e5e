"""Pairs at full size: their denoisers with random weights, made on the device, and pipelines around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from flowblend_plugins.published_pairs.ltx import LTX_0_9_7
from flowblend_plugins.published_pairs.wan import WAN_2_1_T2V
from flowblend_plugins.trace.memory import build_in
from flowblend_plugins.types import Denoiser, JsonView, Keywords, KeywordsView, Pipeline

SMALL_CALL, LARGE_CALL, SHORT_CALL = "480p", "720p", "short"


@dataclass(frozen=True, kw_only=True)
class FullSizePair:
    """A pair, and the calls it is measured on.

    Attributes:
        name: what ``--only`` takes.
        title: for the page.
        class_name: of both denoisers in diffusers.
        configs: of each denoiser by letter.
        make_pipeline: a pipeline on a denoiser; it has no text encoder and no VAE, which are not measured.
        text: arguments of a call that stand for the encoded prompt, on a device.
        calls: keyword arguments of the pipeline call by the name of its size.
        early, late: of the schedules, as fractions of the steps.
        extrapolated: steps and guidance branches of a whole generation of the pair, for the extrapolation.
    """

    name: str
    title: str
    class_name: str
    configs: Mapping[str, JsonView]
    make_pipeline: Callable[[Denoiser], Pipeline]
    text: Callable[[torch.device], Keywords]
    calls: Mapping[str, KeywordsView]
    early: float
    late: float
    extrapolated: tuple[int, int]

    def make_denoiser(self, letter: str, device: torch.device) -> Denoiser:
        """Random bfloat16 weights made on the device; what diffusers loads in float32 is in float32.

        The weights are those of the architecture's own initialisation: real numbers, since a GPU is faster on zeros.
        """
        import diffusers

        torch.manual_seed(ord(letter))
        with device:
            denoiser = build_in(torch.bfloat16, lambda: getattr(diffusers, self.class_name)(**self.configs[letter]))
        return denoiser.requires_grad_(False)


def _wan_pipeline(denoiser: Denoiser) -> Pipeline:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return _quiet(WanPipeline, scheduler, denoiser)


def _ltx_pipeline(denoiser: Denoiser) -> Pipeline:
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline

    return _quiet(LTXPipeline, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), denoiser)


def _quiet(pipeline_class: Any, scheduler: object, denoiser: Denoiser) -> Pipeline:
    pipe = pipeline_class(scheduler=scheduler, transformer=denoiser, vae=None, text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _wan_text(width: int) -> Callable[[torch.device], Keywords]:
    def text(device: torch.device) -> Keywords:
        return {"prompt_embeds": torch.randn(1, 512, width, device=device, dtype=torch.bfloat16)}

    return text


def _ltx_text(width: int) -> Callable[[torch.device], Keywords]:
    def text(device: torch.device) -> Keywords:
        return {
            "prompt_embeds": torch.randn(1, 256, width, device=device, dtype=torch.bfloat16),
            "prompt_attention_mask": torch.ones(1, 256, device=device, dtype=torch.bool),
        }

    return text


def _call(height: int, width: int, num_frames: int) -> Keywords:
    return {"height": height, "width": width, "num_frames": num_frames}


WAN = FullSizePair(
    name="wan",
    title="WAN 2.1 14B and 1.3B",
    class_name=WAN_2_1_T2V.published["L"].class_name,
    configs={letter: one.config for letter, one in WAN_2_1_T2V.published.items()},
    make_pipeline=_wan_pipeline,
    text=_wan_text(4096),
    calls={SMALL_CALL: _call(480, 832, 61), LARGE_CALL: _call(720, 1280, 81), SHORT_CALL: _call(480, 832, 5)},
    early=WAN_2_1_T2V.early,
    late=WAN_2_1_T2V.late,
    extrapolated=(WAN_2_1_T2V.call_defaults["num_inference_steps"], 2),
)
LTX = FullSizePair(
    name="ltx",
    title="LTX-Video 13B and 2B",
    class_name=LTX_0_9_7.published["L"].class_name,
    configs={letter: one.config for letter, one in LTX_0_9_7.published.items()},
    make_pipeline=_ltx_pipeline,
    text=_ltx_text(4096),
    # 720 is no multiple of 32, which this VAE asks for.
    calls={SMALL_CALL: _call(480, 832, 65), LARGE_CALL: _call(704, 1280, 81), SHORT_CALL: _call(480, 832, 9)},
    early=LTX_0_9_7.early,
    late=LTX_0_9_7.late,
    extrapolated=(LTX_0_9_7.call_defaults["num_inference_steps"], 2),
)
PAIRS = (WAN, LTX)

_TINY_WAN: Keywords = {"attention_head_dim": 12, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32}
_TINY_LTX: Keywords = {"attention_head_dim": 16, "caption_channels": 16}
_TINY_CALLS = {name: _call(32, 32 if name != LARGE_CALL else 64, 9) for name in (SMALL_CALL, LARGE_CALL, SHORT_CALL)}


def tiny(pair: FullSizePair) -> FullSizePair:
    """Make the same pipelines and classes around denoisers of some thousand weights, to try everything on a CPU."""
    import dataclasses

    if pair is WAN:
        sizes = {"L": {"num_attention_heads": 2, "num_layers": 3}, "S": {"num_attention_heads": 1, "num_layers": 2}}
        configs = {letter: _TINY_WAN | size for letter, size in sizes.items()}
        text = _wan_text(16)
    else:
        sizes = {"L": {"num_attention_heads": 2, "num_layers": 3}, "S": {"num_attention_heads": 1, "num_layers": 2}}
        configs = {
            letter: _TINY_LTX | size | {"cross_attention_dim": 16 * cast(int, size["num_attention_heads"])}
            for letter, size in sizes.items()
        }
        text = _ltx_text(16)
    return dataclasses.replace(
        pair, title=f"{pair.title}, tiny", configs=configs, text=text, calls=_TINY_CALLS, extrapolated=(12, 2)
    )
