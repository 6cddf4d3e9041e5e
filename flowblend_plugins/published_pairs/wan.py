"""Wan and its descendants: one VAE (``Wan2.1_VAE``) and one text encoder (UMT5-XXL) for all of them."""

from __future__ import annotations

from ..pairs.preset import PairPreset, PublishedDenoiser
from ..types import Keywords
from .t5 import T5_XXL

_CONVERSION = "github.com/huggingface/diffusers, scripts/convert_wan_to_diffusers.py"
_SKYREELS_CONVERSION = "github.com/huggingface/diffusers, scripts/convert_skyreelsv2_to_diffusers.py"
_ONE_VAE = (
    "The conversion script makes every pipeline with the VAE file Wan2.1_VAE.pth (16 latent channels, their mean and "
    "deviation in diffusers' AutoencoderKLWan) and with google/umt5-xxl; text width 4096, patch 1x2x2, flow matching."
)
_UNTESTED = "Boundaries: those of the paper for Wan 2.1 text-to-video; untested on this pair."

_COMMON: Keywords = {
    "added_kv_proj_dim": None,
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "freq_dim": 256,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": (1, 2, 2),
    "qk_norm": "rms_norm_across_heads",
    "text_dim": 4096,
}
_SIZE_14B: Keywords = _COMMON | {"ffn_dim": 13824, "num_attention_heads": 40, "num_layers": 40}
_SIZE_1_3B: Keywords = _COMMON | {"ffn_dim": 8960, "num_attention_heads": 12, "num_layers": 30}
_OF_IMAGE = {"in_channels": 36, "image_dim": 1280, "inject_sample_info": False}

_T2V_14B = PublishedDenoiser(
    class_name="WanTransformer3DModel", config=_SIZE_14B, num_parameters=14_288_491_584, source=_CONVERSION
)
_T2V_1_3B = PublishedDenoiser(
    class_name="WanTransformer3DModel", config=_SIZE_1_3B, num_parameters=1_418_996_800, source=_CONVERSION
)
# Sizes of google/umt5-xxl; the VAE's are the defaults of diffusers' class.
_AROUND = {
    "text_encoder": PublishedDenoiser(
        class_name="UMT5EncoderModel",
        config=T5_XXL | {"vocab_size": 256384},
        num_parameters=5_680_910_336,
        source="config of google/umt5-xxl",
    ),
    "vae": PublishedDenoiser(class_name="AutoencoderKLWan", config={}, num_parameters=126_892_531, source=_CONVERSION),
}

WAN_2_1_T2V = PairPreset(
    name="wan2.1-t2v",
    large="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    small="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    call_defaults={
        "height": 480,
        "width": 832,
        "num_frames": 61,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
    },
    source=(
        "Size, frames, steps and boundaries: FlowBlending (arXiv 2512.24724). Guidance scale: default of diffusers' "
        "WanPipeline; the paper states none."
    ),
    published={"L": _T2V_14B, "S": _T2V_1_3B},
    around=_AROUND,
    verified=_ONE_VAE,
    caveats=("Keep the scheduler's flow_shift at 3.0, Wan 2.1's value for 480p (5.0 for 720p).",),
    example_prompts=("A cat surfing on a wave at sunset, slow motion, the camera follows from the side.",),
)

WAN_2_1_VACE = PairPreset(
    name="wan2.1-vace",
    large="Wan-AI/Wan2.1-VACE-14B-diffusers",
    small="Wan-AI/Wan2.1-VACE-1.3B-diffusers",
    call_defaults={
        "height": 512,
        "width": 512,
        "num_frames": 81,
        "num_inference_steps": 30,
        "guidance_scale": 5.0,
    },
    source=f"Size, frames, steps and guidance: the example of diffusers' WanVACEPipeline. {_UNTESTED}",
    published={
        "L": PublishedDenoiser(
            class_name="WanVACETransformer3DModel",
            config=_SIZE_14B | {"vace_layers": (0, 5, 10, 15, 20, 25, 30, 35), "vace_in_channels": 96},
            num_parameters=17_337_592_896,
            source=_CONVERSION,
        ),
        "S": PublishedDenoiser(
            class_name="WanVACETransformer3DModel",
            config=_SIZE_1_3B | {"vace_layers": tuple(range(0, 30, 2)), "vace_in_channels": 96},
            num_parameters=2_153_972_032,
            source=_CONVERSION,
        ),
    },
    around=_AROUND,
    verified=_ONE_VAE,
    caveats=(
        "The large one has 8 control layers, the small one 15: one conditioning_scale for all layers fits both, a list "
        "of them fits the large one only and is refused at the first small step.",
        "Keep the scheduler's flow_shift at 3.0 for 480p (5.0 for 720p).",
    ),
    example_prompts=("A small blue bird takes off from the ground, flapping its wings.",),
)

WAN_2_2_T2V = PairPreset(
    name="wan2.2-t2v",
    large="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    small="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    schedule="LSM",
    experts={"M": "transformer_2"},
    call_defaults={
        "height": 720,
        "width": 1280,
        "num_frames": 81,
        "num_inference_steps": 40,
        "guidance_scale": 4.0,
        "guidance_scale_2": 3.0,
    },
    source=(
        "Size, frames, steps and both guidance scales: the model card's usage example, as public repositories "
        f"repeat it. {_UNTESTED}"
    ),
    published={"L": _T2V_14B, "M": _T2V_14B, "S": _T2V_1_3B},
    around=_AROUND,
    verified=(
        f"{_ONE_VAE} Public copies of Wan 2.2's own config of the A14B experts (wan_t2v_A14B.py) name Wan2.1_VAE "
        "too; its 5B model has 48 latent channels and is no partner."
    ),
    caveats=(
        "The small denoiser is of Wan 2.1, trained on other data than the experts; how well it continues their "
        "trajectory is unknown.",
        "The pipeline itself chooses guidance_scale or guidance_scale_2 by the noise level (boundary_ratio .875), "
        "whoever answers.",
    ),
    example_prompts=("Two anthropomorphic cats in comfy boxing gear fight on a spotlighted stage.",),
)

SKYREELS_V2_I2V = PairPreset(
    name="skyreels-v2-i2v",
    large="Skywork/SkyReels-V2-I2V-14B-540P-Diffusers",
    small="Skywork/SkyReels-V2-I2V-1.3B-540P-Diffusers",
    call_defaults={
        "height": 544,
        "width": 960,
        "num_frames": 97,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
    },
    source=f"Size, frames, steps and guidance: the example of diffusers' SkyReelsV2ImageToVideoPipeline. {_UNTESTED}",
    published={
        "L": PublishedDenoiser(
            class_name="SkyReelsV2Transformer3DModel",
            config=_SIZE_14B | _OF_IMAGE | {"added_kv_proj_dim": 5120},
            num_parameters=16_394_878_784,
            source=_SKYREELS_CONVERSION,
        ),
        "S": PublishedDenoiser(
            class_name="SkyReelsV2Transformer3DModel",
            config=_SIZE_1_3B | _OF_IMAGE | {"added_kv_proj_dim": 1536},
            num_parameters=1_564_428_608,
            source=_SKYREELS_CONVERSION,
        ),
    },
    around=_AROUND,
    verified=(
        "The conversion script makes the VAE of every SkyReels-V2 pipeline from the file Wan2.1_VAE.pth; 36 channels "
        "in (latents, mask, image latents), image width 1280, text width 4096, flow matching."
    ),
    caveats=(
        "It takes an image: `flowblend run --image FILE`.",
        "Set the scheduler's flow_shift to 5.0, the value of SkyReels-V2 for image-to-video.",
        "Text-to-video was published at 14B only; the diffusion-forcing pipelines cannot be routed (they step copies "
        "of their scheduler).",
    ),
    example_prompts=("A cat and a dog baking a cake together in a kitchen.",),
)
