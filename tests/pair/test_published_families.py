"""The other published families: their pipeline classes with tiny denoisers of the public flags, blended.

Widths and depths shrink; every flag of the public config that names a way of computing stays. Text encoders are left
out, their outputs are handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.published_pairs import PUBLISHED_PAIRS
from flowblend_plugins.testing import tiny_wan_pipeline
from tests.exactness.pipelines import seeded

PAIRS = {pair.name: pair for pair in PUBLISHED_PAIRS}


@dataclass(frozen=True)
class Family:
    """A published pair made tiny: sizes of either side, the pipeline around a denoiser, and its call."""

    pair: str
    sizes: Mapping[str, Mapping[str, Any]]
    make_pipe: Callable[[Any], Any]
    call: Mapping[str, Any]
    slot: str = "transformer"

    def denoiser(self, letter: str) -> Any:
        published = PAIRS[self.pair].published[letter]
        make = getattr(diffusers, published.class_name).from_config
        return seeded(lambda: make(dict(published.config) | self.sizes[letter]), "LS".index(letter))

    def pipe(self, letter: str) -> Any:
        pipe = self.make_pipe(self.denoiser(letter))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @torch.no_grad()
    def run(self, pipe: Any) -> torch.Tensor:
        given = {name: value() if callable(value) else value for name, value in self.call.items()}
        generator = torch.Generator().manual_seed(0)
        output = pipe(**given, num_inference_steps=5, generator=generator, output_type="latent", return_dict=False)
        return output[0]


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def no_text(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


def tiny_vae(channels: int, downs: int = 1) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(4,) * downs,
        down_block_types=("DownEncoderBlock2D",) * downs,
        up_block_types=("UpDecoderBlock2D",) * downs,
        norm_num_groups=2,
        sample_size=32,
    )


def sd3(transformer: Any) -> Any:
    names = [f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=scheduler, vae=tiny_vae(16), **no_text(*names)
    )


def cosmos(transformer: Any) -> Any:
    class Unchecked:
        """Stands for the guardrail, a package of its own; prompts are not handed over, so it has nothing to see."""

        def to(self, device: object) -> Unchecked:
            return self

    plain = tiny_wan_pipeline()
    return diffusers.Cosmos2TextToImagePipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=plain.vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=Unchecked(),  # type: ignore[arg-type]
    )


def kandinsky(transformer: Any) -> Any:
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=16,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return diffusers.Kandinsky5T2VPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        **no_text("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    )


def sdxl(unet: Any) -> Any:
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=tiny_vae(4, 2),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        add_watermarker=False,
        **no_text("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    )


def sd15(unet: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=tiny_vae(4, 2),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        requires_safety_checker=False,
        **no_text("text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
    )


def embeds(*shape: int, negative: str = "negative_", name: str = "prompt_embeds") -> dict[str, Any]:
    return {name: lambda: noise(*shape), negative + name: lambda: noise(*shape, seed=2)}


SD3_SIZES = {
    "sample_size": 8, "attention_head_dim": 8, "joint_attention_dim": 16, "pooled_projection_dim": 12,
    "pos_embed_max_size": 16,
}  # fmt: skip
COSMOS_SIZES = {
    "in_channels": 4, "out_channels": 4, "attention_head_dim": 16, "text_embed_dim": 16, "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
}  # fmt: skip
KANDINSKY_SIZES = {"in_text_dim": 16, "in_text_dim2": 12, "time_dim": 16, "axes_dims": (4, 4, 4)}
XL_SIZES = {
    "sample_size": 8, "block_out_channels": (8, 16, 16), "attention_head_dim": (2, 4, 4), "norm_num_groups": 4,
    "cross_attention_dim": 16, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 60,
}  # fmt: skip
SD_SIZES = {
    "sample_size": 8, "block_out_channels": (8, 16, 16, 16), "attention_head_dim": 2, "norm_num_groups": 4,
    "cross_attention_dim": 16,
}  # fmt: skip

XL_CALL = {
    **embeds(1, 8, 16),
    **embeds(1, 12, name="pooled_prompt_embeds"),
    "height": 16,
    "width": 16,
    "guidance_scale": 5.0,
}
FAMILIES = {
    "sd3.5": Family(
        "sd3.5",
        {
            "L": {**SD3_SIZES, "num_layers": 3, "num_attention_heads": 3, "caption_projection_dim": 24},
            "S": {
                **SD3_SIZES, "num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 16,
                "dual_attention_layers": (0,), "pos_embed_max_size": 24,
            },
        },
        sd3,
        {**embeds(1, 8, 16), **embeds(1, 12, name="pooled_prompt_embeds"), "height": 8, "width": 8},
    ),
    "cosmos-predict2-t2i": Family(
        "cosmos-predict2-t2i",
        {
            "L": {**COSMOS_SIZES, "num_layers": 2, "num_attention_heads": 2},
            "S": {**COSMOS_SIZES, "num_layers": 1, "num_attention_heads": 1},
        },
        cosmos,
        {**embeds(1, 8, 16), "height": 32, "width": 32},
    ),
    "kandinsky5-t2v": Family(
        "kandinsky5-t2v",
        {
            "L": {**KANDINSKY_SIZES, "model_dim": 24, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2},
            "S": {
                **KANDINSKY_SIZES, "model_dim": 12, "ff_dim": 24, "num_text_blocks": 1, "num_visual_blocks": 1,
                "time_dim": 8,
            },
        },
        kandinsky,
        {
            **embeds(1, 8, 16, name="prompt_embeds_qwen"),
            **embeds(1, 12, name="prompt_embeds_clip"),
            "prompt_cu_seqlens": lambda: torch.tensor([0, 8], dtype=torch.int32),
            "negative_prompt_cu_seqlens": lambda: torch.tensor([0, 8], dtype=torch.int32),
            "height": 32,
            "width": 32,
            "num_frames": 5,
        },
    ),
    "sdxl-ssd-1b": Family("sdxl-ssd-1b", {"L": XL_SIZES, "S": XL_SIZES}, sdxl, XL_CALL, "unet"),
    "sdxl-vega": Family("sdxl-vega", {"L": XL_SIZES, "S": XL_SIZES}, sdxl, XL_CALL, "unet"),
    "sd1.5-bk-sdm": Family(
        "sd1.5-bk-sdm",
        {"L": SD_SIZES, "S": SD_SIZES},
        sd15,
        {**embeds(1, 8, 16), "height": 16, "width": 16},
        "unet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_published_family_is_routed_exactly(name: str) -> None:
    if name == "cosmos-predict2-t2i":
        pytest.importorskip("torchvision", reason="CosmosTransformer3DModel resizes its mask with it")
    family = FAMILIES[name]
    pipe, on_small = family.pipe("L"), family.pipe("S")
    large, small = family.run(pipe), family.run(on_small)
    assert not torch.equal(large, small)
    assert large.isfinite().all()
    for schedule, expected in (("LLL", large), ("SSS", small)):
        with fb.enable(pipe, family.denoiser("S"), schedule):
            assert torch.equal(family.run(pipe), expected)
    with fb.enable(pipe, family.denoiser("S"), "LSL") as blend:
        blended = family.run(pipe)
        assert blend.trace.last is not None
        letters = dict.fromkeys((call.step.step_index, call.step.denoiser) for call in blend.trace.last.calls)
    # PNDM, which BK-SDM is sampled with, visits its second timestep twice
    assert "".join(letter for _, letter in letters) == ("LLSSSL" if name == "sd1.5-bk-sdm" else "LLSSL")
    assert not torch.equal(blended, large)
    assert not torch.equal(blended, small)
    assert torch.equal(family.run(pipe), large)


def test_every_published_pair_is_run_somewhere() -> None:
    """Wan and VACE are in ``test_published``, LTX in ``tests/ltx``, SkyReels-V2's denoiser in ``tests/exactness``."""
    elsewhere = {"wan2.1-t2v", "wan2.1-vace", "wan2.2-t2v", "skyreels-v2-i2v"}
    elsewhere |= {"ltx-0.9.7", "ltx-0.9.8", "ltx-0.9.8-distilled"}
    assert set(FAMILIES) | elsewhere == set(PAIRS)
