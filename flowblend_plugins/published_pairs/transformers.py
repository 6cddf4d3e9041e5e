"""Pairs of diffusion transformers beside Wan's: stills, and Kandinsky's videos."""

from __future__ import annotations

from ..pairs.preset import PairPreset, PublishedDenoiser
from ..types import Keywords

_UNTESTED = "Boundaries: those of the paper for Wan 2.1 text-to-video; untested on this pair."

_SD3_SOURCE = (
    "the configs of both models, VAE and scheduler as copied in Tenstorrent's loader of "
    "Comfy-Org/stable-diffusion-3.5-fp8; the originals are gated"
)
_SD3: Keywords = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}

SD_3_5 = PairPreset(
    name="sd3.5",
    large="stabilityai/stable-diffusion-3.5-large",
    small="stabilityai/stable-diffusion-3.5-medium",
    call_defaults={"height": 1024, "width": 1024, "num_inference_steps": 28, "guidance_scale": 3.5},
    source=(
        "Size: the models' sample_size of 128 latents. Steps and guidance: the usage example of 3.5 large's model "
        f"card, as public repositories repeat it. {_UNTESTED}"
    ),
    published={
        "L": PublishedDenoiser(
            class_name="SD3Transformer2DModel",
            config=_SD3
            | {
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "pos_embed_max_size": 192,
                "dual_attention_layers": (),
            },
            num_parameters=8_056_627_520,
            source=_SD3_SOURCE,
        ),
        "S": PublishedDenoiser(
            class_name="SD3Transformer2DModel",
            config=_SD3
            | {
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
            },
            num_parameters=2_243_171_520,
            source=_SD3_SOURCE,
        ),
    },
    verified=(
        "One VAE config for both (AutoencoderKL, 16 channels, scaling 1.5305, shift .0609), two CLIP encoders and "
        "T5-XXL, flow matching with shift 3. Dual attention is inside the denoiser. Second-hand: the originals are "
        "gated, so enabling is the first check against them."
    ),
    caveats=("Both repositories are gated: accept their terms on the hub and log in first.",),
    example_prompts=("A capybara holding a sign that reads Hello World.",),
)

_COSMOS_SOURCE = "github.com/huggingface/diffusers, scripts/convert_cosmos_to_diffusers.py"
_COSMOS: Keywords = {
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 128,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": (128, 240, 240),
    "patch_size": (1, 2, 2),
    "rope_scale": (1.0, 4.0, 4.0),
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,
}

COSMOS_PREDICT2_T2I = PairPreset(
    name="cosmos-predict2-t2i",
    large="nvidia/Cosmos-Predict2-14B-Text2Image",
    small="nvidia/Cosmos-Predict2-2B-Text2Image",
    call_defaults={"height": 768, "width": 1360, "num_inference_steps": 35, "guidance_scale": 7.0},
    source=f"Size, steps and guidance: defaults of diffusers' Cosmos2TextToImagePipeline. {_UNTESTED}",
    published={
        "L": PublishedDenoiser(
            class_name="CosmosTransformer3DModel",
            config=_COSMOS | {"num_attention_heads": 40, "num_layers": 36},
            num_parameters=14_265_265_152,
            source=_COSMOS_SOURCE,
        ),
        "S": PublishedDenoiser(
            class_name="CosmosTransformer3DModel",
            config=_COSMOS | {"num_attention_heads": 16, "num_layers": 28},
            num_parameters=1_956_405_248,
            source=_COSMOS_SOURCE,
        ),
    },
    verified=(
        "The conversion script gives every Cosmos-Predict2 pipeline the VAE of Wan 2.1, T5-11B and one scheduler "
        "(flow matching, Karras sigmas)."
    ),
    caveats=("The pipeline wants the package cosmos_guardrail, or a safety checker of yours.",),
    example_prompts=("A close-up of a yellow scrubber working on a grimy plate.",),
)

_KANDINSKY: Keywords = {
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "in_text_dim": 3584,
    "in_text_dim2": 768,
    "patch_size": (1, 2, 2),
    "visual_cond": True,
}

KANDINSKY_5_T2V = PairPreset(
    name="kandinsky5-t2v",
    large="kandinskylab/Kandinsky-5.0-T2V-Pro-sft-5s-Diffusers",
    small="kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers",
    call_defaults={
        "height": 512,
        "width": 768,
        "num_frames": 121,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
    },
    source=(
        "Size, frames, steps and guidance: the example of diffusers' Kandinsky5T2VPipeline; both models' original "
        f"configs say resolution 512. {_UNTESTED}"
    ),
    published={
        "L": PublishedDenoiser(
            class_name="Kandinsky5Transformer3DModel",
            config=_KANDINSKY
            | {
                "time_dim": 1024,
                "model_dim": 4096,
                "ff_dim": 16384,
                "num_text_blocks": 4,
                "num_visual_blocks": 60,
                "axes_dims": (32, 48, 48),
            },
            num_parameters=19_311_325_248,
            source="github.com/kandinskylab/kandinsky-5, configs/k5_pro_t2v_5s_sft_sd.yaml",
        ),
        "S": PublishedDenoiser(
            class_name="Kandinsky5Transformer3DModel",
            config=_KANDINSKY
            | {
                "time_dim": 512,
                "model_dim": 1792,
                "ff_dim": 7168,
                "num_text_blocks": 2,
                "num_visual_blocks": 32,
                "axes_dims": (16, 24, 24),
            },
            num_parameters=2_007_702_848,
            source="github.com/ai-forever/Kandinsky-5, configs/config_5s_sft.yaml",
        ),
    },
    verified=(
        "Both original configs name the VAE `hunyuan`, 16 latent channels, Qwen2.5-VL (3584 wide, 256 tokens), CLIP "
        "(768 wide, 77 tokens) and the same position scale at resolution 512."
    ),
    caveats=("At the Pro's high-definition sizes the position scale is another; the Lite was trained at 512.",),
    example_prompts=("A cat and a dog baking a cake together in a kitchen.",),
)
