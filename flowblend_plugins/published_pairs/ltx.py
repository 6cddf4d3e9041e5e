"""LTX-Video: 13B and 2B in one latent space, from folders in diffusers' format and single files."""

from __future__ import annotations

from ..pairs.preset import PairPreset, PublishedDenoiser
from ..types import Keywords
from .t5 import T5_XXL

_CONVERSION = "github.com/huggingface/diffusers, scripts/convert_ltx_to_diffusers.py"
_13B = PublishedDenoiser(
    class_name="LTXVideoTransformer3DModel",
    config={"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48},
    num_parameters=13_042_569_344,
    source=f"{_CONVERSION} (0.9.7)",
)
_2B = PublishedDenoiser(
    class_name="LTXVideoTransformer3DModel",
    config={"attention_head_dim": 64, "cross_attention_dim": 2048, "num_layers": 28},
    num_parameters=1_923_385_472,
    source=f"{_CONVERSION}; the transformer of the 2B has one shape in all versions",
)
_AROUND = {
    "text_encoder": PublishedDenoiser(
        class_name="T5EncoderModel",
        config=T5_XXL | {"vocab_size": 32128},
        num_parameters=4_762_310_656,
        source="config of google/t5-v1_1-xxl",
    ),
    "vae": PublishedDenoiser(
        class_name="AutoencoderKLLTXVideo",
        config={
            "block_out_channels": (128, 256, 512, 1024, 2048),
            "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
            "decoder_block_out_channels": (256, 512, 1024),
            "layers_per_block": (4, 6, 6, 2, 2),
            "decoder_layers_per_block": (5, 5, 5, 5),
            "spatio_temporal_scaling": (True, True, True, True),
            "decoder_spatio_temporal_scaling": (True, True, True),
            "decoder_inject_noise": (False, False, False, False),
            "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            "upsample_residual": (True, True, True),
            "upsample_factor": (2, 2, 2),
            "timestep_conditioning": True,
        },
        num_parameters=1_246_913_522,
        source=f"{_CONVERSION} (0.9.5 and later)",
    ),
}
_PAPER_SIZE: Keywords = {"height": 352, "width": 608, "num_frames": 65}
_PAPER = (
    "Size and steps: FlowBlending (arXiv 2512.24724), with 65 frames in place of 61, because its totals need 9 latent "
    "frames. Boundaries: the large denoiser on half of the steps, as in the paper; where the half lies is our choice"
)
_ONE_SPACE = (
    "Lightricks' trainer loads one VAE for 2B 0.9.5 and 0.9.6 and 13B 0.9.7 (github.com/Lightricks/LTX-Video-Trainer, "
    "model_loader.py). Second-hand: decoders of 0.9.5 and 0.9.7 differ numerically, so the latent statistics decide, "
    "which enabling compares."
)
_ONE_BASE_MODEL = (
    "The README of github.com/Lightricks/LTX-Video says that 13B and 2B 0.9.8 distilled come from one base model and "
    "are for use together. A single file's latent statistics are compared with the pipeline's VAE when it is loaded."
)
_PROMPT = "A woman with long brown hair walks along a beach at sunset, the camera follows her from the side."

LTX_0_9_7 = PairPreset(
    name="ltx-0.9.7",
    large="Lightricks/LTX-Video-0.9.7-dev",
    small="Lightricks/LTX-Video-0.9.5",
    early=0.25,
    late=0.25,
    call_defaults=_PAPER_SIZE | {"num_inference_steps": 40, "guidance_scale": 3.0},
    source=f"{_PAPER}. Guidance scale: default of diffusers' LTXConditionPipeline; the paper states none.",
    published={"L": _13B, "S": _2B},
    around=_AROUND,
    verified=_ONE_SPACE,
    example_prompts=(_PROMPT,),
)

LTX_0_9_8 = PairPreset(
    name="ltx-0.9.8",
    large="Lightricks/LTX-Video/ltxv-13b-0.9.8-dev.safetensors",
    base="Lightricks/LTX-Video-0.9.7-dev",
    small="Lightricks/LTX-Video/ltxv-2b-0.9.8-distilled.safetensors",
    early=0.25,
    late=0.25,
    call_defaults=_PAPER_SIZE | {"num_inference_steps": 40, "guidance_scale": 3.0},
    source=f"{_PAPER}. Guidance scale: default of diffusers' LTXConditionPipeline; the paper states none.",
    published={"L": _13B, "S": _2B},
    around=_AROUND,
    verified=_ONE_BASE_MODEL,
    caveats=(
        "The small denoiser is distilled without guidance: add the adapter distilled_small, which answers it so.",
    ),
    example_prompts=(_PROMPT,),
    distilled={"small-8": "as_loaded"},
)

LTX_0_9_8_DISTILLED = PairPreset(
    name="ltx-0.9.8-distilled",
    large="Lightricks/LTX-Video-0.9.8-13B-distilled",
    small="Lightricks/LTX-Video/ltxv-2b-0.9.8-distilled.safetensors",
    early=0.25,
    late=0.25,
    call_defaults=_PAPER_SIZE | {"num_inference_steps": 8, "guidance_scale": 1.0},
    source=f"{_PAPER}. Steps and guidance: configs of the distilled models in github.com/Lightricks/LTX-Video.",
    published={"L": _13B, "S": _2B},
    around=_AROUND,
    verified=_ONE_BASE_MODEL,
    caveats=("Both were distilled for their own noise levels: add the adapter ltx_distilled, which samples at them.",),
    example_prompts=(_PROMPT,),
    distilled={"large-8": "as_loaded", "small-8": "as_loaded"},
)
