"""Published few-step methods by name: where their weights are, and at which noise levels they were distilled.

Each is ``distilled`` with other defaults. docs/distilled/published.md says where every figure was read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from flowblend_plugins import AdapterTraits

from .distilled import Distilled
from .few_step_sampler import Sampler


def shifted(levels: tuple[float, ...], flow_shift: float) -> tuple[float, ...]:
    """Noise levels moved towards noise: ``s * t / (1 + (s - 1) * t)`` (Esser et al., 2024, arXiv 2403.03206)."""
    return tuple(flow_shift * level / (1.0 + (flow_shift - 1.0) * level) for level in levels)


_ON_WAN: AdapterTraits = dataclasses.replace(Distilled.traits, denoiser_classes=frozenset({"WanTransformer3DModel"}))
_ON_LTX: AdapterTraits = dataclasses.replace(
    Distilled.traits, denoiser_classes=frozenset({"LTXVideoTransformer3DModel"})
)


@dataclass(frozen=True, kw_only=True)
class LightX2V(Distilled):
    """Sample Wan 2.1 in 4 steps with LightX2V's LoRA.

    LightX2V's step and guidance distillation of Wan 2.1 T2V (DMD2 with self-forcing): 4 steps, each with new noise.

    Its LoRA is for the 14B denoiser; there is none of theirs for the 1.3B one, so a small denoiser needs ``small``.
    Source: wan_t2v_distill_lora_4step_cfg.json and WanStepDistillScheduler of ModelTC/LightX2V.
    """

    large: str | None = "lightx2v/Wan2.1-Distill-Loras/wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors"
    sigmas: tuple[float, ...] | None = shifted((1.0, 0.75, 0.5, 0.25), 5.0)
    sampler: Sampler | None = "lcm"

    name: ClassVar[str] = "lightx2v"
    page: ClassVar[str | None] = "docs/distilled/published.md"
    suggested: ClassVar[tuple[str, ...]] = ()
    traits: ClassVar[AdapterTraits] = _ON_WAN


@dataclass(frozen=True, kw_only=True)
class CausVid(Distilled):
    """Sample Wan 2.1 in 12 steps with CausVid's LoRAs.

    CausVid (Yin et al., 2024, arXiv 2412.07772) on Wan 2.1 T2V, as LoRAs that Kijai extracted for both sizes.

    At full strength it takes 4 steps or more and motion suffers; 12 steps at 0.3 are recommended with it.
    Source: files of Kijai/WanVideo_comfy; strength, steps, UniPC and no guidance from its author's page; shift 8 from
    huggingface/diffusers#11588.
    """

    large: str | None = "Kijai/WanVideo_comfy/Wan21_CausVid_14B_T2V_lora_rank32.safetensors"
    small: str | None = "Kijai/WanVideo_comfy/Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors"
    num_inference_steps: int | None = 12
    flow_shift: float | None = 8.0
    sampler: Sampler | None = "unipc"
    lora_scale: float = 0.3

    name: ClassVar[str] = "causvid"
    page: ClassVar[str | None] = "docs/distilled/published.md"
    suggested: ClassVar[tuple[str, ...]] = ()
    traits: ClassVar[AdapterTraits] = _ON_WAN


@dataclass(frozen=True, kw_only=True)
class FastWan(Distilled):
    """Sample Wan in 3 steps with FastVideo's weights.

    FastVideo's sparse distillation of Wan (DMD): 3 steps, each with new noise. The weights must be given.

    Source: FastWan2_1_T2V_480P_Config and DmdDenoisingStage of hao-ai-lab/FastVideo: timesteps 1000, 757, 522, which
    lie on its shifted noise schedule already.
    """

    sigmas: tuple[float, ...] | None = (1.0, 0.757, 0.522)
    sampler: Sampler | None = "lcm"

    name: ClassVar[str] = "fastwan"
    page: ClassVar[str | None] = "docs/distilled/published.md"
    suggested: ClassVar[tuple[str, ...]] = ()
    traits: ClassVar[AdapterTraits] = _ON_WAN


@dataclass(frozen=True, kw_only=True)
class LTXDistilled(Distilled):
    """Sample LTX-Video's distilled models in 8 steps.

    LTX-Video's distilled models, 0.9.7 and 0.9.8: 8 steps at fixed noise levels. The weights must be given.

    A call with ``denoise_strength`` below 1 is the second pass, after the latent upsampler, at three levels of its own.
    Source: diffusers' page on LTX-Video (both passes), and configs/ltxv-13b-0.9.7-distilled.yaml of
    Lightricks/LTX-Video, whose 7 levels are the same to four digits without the last, which is all but 0.
    """

    sigmas: tuple[float, ...] | None = (1.0, 0.993, 0.987, 0.981, 0.975, 0.909, 0.725, 0.00003)
    sampler: Sampler | None = "euler"

    second_pass_sigmas: ClassVar[tuple[float, ...]] = (0.909, 0.725, 0.421)
    name: ClassVar[str] = "ltx_distilled"
    page: ClassVar[str | None] = "docs/distilled/published.md"
    suggested: ClassVar[tuple[str, ...]] = ()
    traits: ClassVar[AdapterTraits] = _ON_LTX
