"""Stable Diffusion's UNets and the smaller ones that were distilled from them, in the same latents."""

from __future__ import annotations

from ..pairs.preset import PairPreset, PublishedDenoiser
from ..types import Keywords

_UNTESTED = "Boundaries: those of the paper for Wan 2.1 text-to-video, a transformer; untested on UNets."
_UNET = "UNet2DConditionModel"

_SDXL: Keywords = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SDXL_SOURCE = "the models' layout in github.com/comfyanonymous/ComfyUI, comfy/model_detection.py, in diffusers' terms"
_SDXL_BASE = PublishedDenoiser(
    class_name=_UNET,
    config=_SDXL | {"transformer_layers_per_block": (1, 2, 10)},
    num_parameters=2_567_463_684,
    source=_SDXL_SOURCE,
)
_SDXL_CALL = {"height": 1024, "width": 1024, "num_inference_steps": 50, "guidance_scale": 5.0}
_SDXL_CALL_SOURCE = (
    "Size: the models' sample_size of 128 latents. Steps and guidance: defaults of diffusers' "
    f"StableDiffusionXLPipeline. {_UNTESTED}"
)
_SDXL_VERIFIED = (
    "4 latent channels, text width 2048, added conditioning 2816 and epsilon prediction on both sides; the model "
    "card says that it was distilled from SDXL. Not compared by file: the VAE and the text encoders; enabling compares "
    "their configs."
)

SDXL_SSD_1B = PairPreset(
    name="sdxl-ssd-1b",
    large="stabilityai/stable-diffusion-xl-base-1.0",
    small="segmind/SSD-1B",
    call_defaults=_SDXL_CALL,
    source=_SDXL_CALL_SOURCE,
    published={
        "L": _SDXL_BASE,
        "S": PublishedDenoiser(
            class_name=_UNET,
            config=_SDXL
            | {
                "mid_block_type": "UNetMidBlock2D",
                "transformer_layers_per_block": (1, (2, 2), (4, 4)),
                "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
            },
            num_parameters=1_331_334_404,
            source=_SDXL_SOURCE,
        ),
    },
    verified=_SDXL_VERIFIED,
    example_prompts=("An astronaut riding a green horse.",),
)

SDXL_VEGA = PairPreset(
    name="sdxl-vega",
    large="stabilityai/stable-diffusion-xl-base-1.0",
    small="segmind/Segmind-Vega",
    call_defaults=_SDXL_CALL,
    source=_SDXL_CALL_SOURCE,
    published={
        "L": _SDXL_BASE,
        "S": PublishedDenoiser(
            class_name=_UNET,
            config=_SDXL
            | {
                "mid_block_type": "UNetMidBlock2D",
                "transformer_layers_per_block": (1, (1, 1), (2, 2)),
                "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 1),
            },
            num_parameters=745_225_604,
            source=_SDXL_SOURCE,
        ),
    },
    verified=_SDXL_VERIFIED,
    caveats=("Segmind-Vega was distilled from SDXL and two of its finetunes, so its style is partly theirs.",),
    example_prompts=("A cinematic portrait of an old fisherman.",),
)

_SD1: Keywords = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}

SD_1_5_BK_SDM = PairPreset(
    name="sd1.5-bk-sdm",
    large="stable-diffusion-v1-5/stable-diffusion-v1-5",
    small="nota-ai/bk-sdm-small",
    call_defaults={"height": 512, "width": 512, "num_inference_steps": 50, "guidance_scale": 7.5},
    source=(
        "Size: the models' sample_size of 64 latents. Steps: the BK-SDM repository's example (50 PNDM steps). "
        f"Guidance: default of diffusers' StableDiffusionPipeline. {_UNTESTED}"
    ),
    published={
        "L": PublishedDenoiser(
            class_name=_UNET,
            config=_SD1 | {"layers_per_block": 2},
            num_parameters=859_520_964,
            source="huggingface.co/osanseviero/compvis_fix, unet/config.json, a copy of Stable Diffusion v1",
        ),
        "S": PublishedDenoiser(
            class_name=_UNET,
            config=_SD1 | {"layers_per_block": 1, "mid_block_type": None},
            num_parameters=482_346_884,
            source="github.com/Nota-NetsPresso/BK-SDM, src/unet_config/bk_small/config.json",
        ),
    },
    verified=(
        "BK-SDM's authors replace the UNet of Stable Diffusion v1.4 alone and keep its text encoder and image decoder "
        "(github.com/Nota-NetsPresso/BK-SDM, README.md); 4 latent channels, text width 768."
    ),
    caveats=("BK-SDM was distilled from v1.4; v1.5 began from v1.2 (its model card), in the same latents.",),
    example_prompts=("A golden vase with different flowers.",),
)
