"""Tiny real pipelines, one entry for each family that the router must be exact on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLMochi,
    AutoencoderKLTemporalDecoder,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    MochiPipeline,
    MochiTransformer3DModel,
    PNDMScheduler,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from flowblend_plugins.testing import tiny_ltx_denoiser, tiny_ltx_pipeline, tiny_wan_denoiser, tiny_wan_pipeline

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "unipc": lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dpm++2m": lambda: DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
    ),
    "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
    "cogvideox-ddim": lambda: CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    "cogvideox-dpm": lambda: CogVideoXDPMScheduler(prediction_type="v_prediction"),
    "unipc, v": lambda: UniPCMultistepScheduler(prediction_type="v_prediction"),
    "dpm++2m, v": lambda: DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", prediction_type="v_prediction"),
    "ddim": lambda: DDIMScheduler(clip_sample=False, steps_offset=1),
    "pndm": lambda: PNDMScheduler(skip_prk_steps=True, steps_offset=1),
    "euler-epsilon": lambda: EulerDiscreteScheduler(steps_offset=1),
    "heun-epsilon": lambda: HeunDiscreteScheduler(steps_offset=1),
    "euler-v": lambda: EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    ),
}


@dataclass(frozen=True)
class Family:
    """One pipeline class: how to make it, its small denoiser and its call.

    Attributes:
        name: as tests show it.
        make_pipe: a fresh pipeline on the large denoiser; the same weights every time.
        make_small: a fresh small denoiser; the same weights every time.
        arguments: keyword arguments of the call for a batch size, without steps and generator.
        schedulers: names in ``SCHEDULERS`` of those it takes.
        slot: ``"transformer"`` or ``"unet"``.
    """

    name: str
    make_pipe: Callable[[], Any]
    make_small: Callable[[], Any]
    arguments: Callable[[int], dict[str, Any]]
    schedulers: tuple[str, ...]
    slot: str = "transformer"

    def pipe(self, scheduler: str | None = None) -> Any:
        pipe = self.make_pipe()
        pipe.set_progress_bar_config(disable=True)
        if scheduler is not None:
            pipe.scheduler = SCHEDULERS[scheduler]()
        return pipe

    @torch.no_grad()
    def run(
        self, pipe: Any, num_inference_steps: int = 6, seed: int = 0, batch: int = 1, **overrides: Any
    ) -> torch.Tensor:
        """The latents of one generation (LTX2: those of video and audio together)."""
        arguments = {
            "num_inference_steps": num_inference_steps,
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "latent",
            "return_dict": False,
            **self.arguments(batch),
            **overrides,
        }
        output = pipe(**arguments)
        tensors = [part for part in output if isinstance(part, torch.Tensor)]
        return torch.cat([tensor.flatten() for tensor in tensors])


@functools.cache
def plain_latents(family: Family, scheduler: str | None = None) -> torch.Tensor:
    """Latents of the family's plain pipeline, on which nothing was ever enabled; generated once in a process."""
    return family.run(family.pipe(scheduler))


def seeded(make: Callable[[], Any], seed: int) -> Any:
    """``make()`` with random weights that depend on ``seed`` alone; zeros are filled too, so that all of it counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make().eval()
        for parameter in module.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return module


def text(batch: int, width: int, tokens: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1234)
    return {
        "prompt_embeds": torch.randn(batch, tokens, width, generator=generator),
        "negative_prompt_embeds": torch.randn(batch, tokens, width, generator=generator),
    }


def masked_text(batch: int, width: int, tokens: int = 8, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, tokens, dtype=dtype)
    return text(batch, width, tokens) | {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


SIZE = {"height": 32, "width": 32, "num_frames": 9}


def still(size: int = 32) -> Image.Image:
    values = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def _wan_i2v_denoiser(seed: int, heads: int, layers: int) -> Any:
    return seeded(
        lambda: WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=12, in_channels=12, out_channels=4, text_dim=16, freq_dim=32,
            ffn_dim=32, num_layers=layers, rope_max_seq_len=32,
        ),
        seed,
    )  # fmt: skip


def _wan_i2v() -> Any:
    plain = tiny_wan_pipeline()
    return WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=plain.vae, scheduler=plain.scheduler,
        transformer=_wan_i2v_denoiser(0, 2, 2), image_encoder=None, image_processor=None,
    )  # fmt: skip


def _wan_v2v() -> Any:
    plain = tiny_wan_pipeline()
    return WanVideoToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=plain.vae, scheduler=plain.scheduler, transformer=plain.transformer
    )


def _ltx_condition() -> Any:
    plain = tiny_ltx_pipeline()
    return LTXConditionPipeline(
        scheduler=SCHEDULERS["euler"](), vae=plain.vae, text_encoder=None, tokenizer=None, transformer=plain.transformer
    )


def _ltx2_denoiser(seed: int, layers: int) -> Any:
    return seeded(
        lambda: LTX2VideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
            audio_cross_attention_dim=8, num_layers=layers, caption_channels=16, rope_double_precision=False,
            rope_type="split",
        ),
        seed,
    )  # fmt: skip


def _ltx2() -> Any:
    vae = seeded(
        lambda: AutoencoderKLLTX2Video(
            latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
            decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_type=("spatiotemporal",),
            upsample_residual=(False,), upsample_factor=(1,), patch_size=1, patch_size_t=1, encoder_causal=True,
            decoder_causal=False, spatial_compression_ratio=8,
        ),
        2,
    )  # fmt: skip
    # Told, not so: latents are not decoded here, and 1280 tokens would be 80 % of the time of all LTX2 tests.
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    audio_vae = seeded(
        lambda: AutoencoderKLLTX2Audio(
            base_channels=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, resolution=32, latent_channels=2,
            norm_type="pixel", causality_axis="height", mel_bins=8,
        ),
        3,
    )  # fmt: skip
    connectors = seeded(
        lambda: LTX2TextConnectors(
            caption_channels=16, text_proj_in_factor=2, video_connector_num_attention_heads=4,
            video_connector_attention_head_dim=4, video_connector_num_layers=1,
            video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=4,
            audio_connector_attention_head_dim=4, audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_double_precision=False,
            rope_type="split",
        ),
        4,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=8, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
    )  # fmt: skip
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, audio_vae=audio_vae, text_encoder=None, tokenizer=None,
        connectors=connectors, transformer=_ltx2_denoiser(0, 2), vocoder=vocoder,
    )  # fmt: skip


def _cogvideox_denoiser(seed: int, layers: int) -> Any:
    return seeded(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
            text_embed_dim=16, num_layers=layers, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
            max_text_seq_length=8,
        ),
        seed,
    )  # fmt: skip


def _cogvideox() -> Any:
    vae = seeded(
        lambda: AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        ),
        2,
    )  # fmt: skip
    return CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=_cogvideox_denoiser(0, 2),
        scheduler=SCHEDULERS["cogvideox-ddim"](),
    )  # fmt: skip


def _mochi_denoiser(seed: int, layers: int) -> Any:
    return seeded(
        lambda: MochiTransformer3DModel(
            patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=layers, pooled_projection_dim=16,
            in_channels=12, qk_norm="rms_norm", text_embed_dim=16, time_embed_dim=4,
        ),
        seed,
    )  # fmt: skip


def _mochi() -> Any:
    vae = seeded(
        lambda: AutoencoderKLMochi(
            latent_channels=12, encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1),
        ),
        2,
    )  # fmt: skip
    return MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True), vae=vae, text_encoder=None, tokenizer=None,
        transformer=_mochi_denoiser(0, 2),
    )  # fmt: skip


def _skyreels_denoiser(seed: int, heads: int, layers: int) -> Any:
    return seeded(
        lambda: SkyReelsV2Transformer3DModel(
            num_attention_heads=heads, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
            ffn_dim=32, num_layers=layers, rope_max_seq_len=32,
        ),
        seed,
    )  # fmt: skip


def skyreels(pipeline_class: Any = SkyReelsV2Pipeline) -> Any:
    plain = tiny_wan_pipeline()
    return pipeline_class(
        tokenizer=None, text_encoder=None, transformer=_skyreels_denoiser(0, 2, 2), vae=plain.vae,
        scheduler=plain.scheduler,
    )  # fmt: skip


def _unet(seed: int, channels: Sequence[int]) -> Any:
    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, attention_head_dim=2, norm_num_groups=2,
        ),
        seed,
    )  # fmt: skip


def _stable_diffusion() -> Any:
    vae = seeded(lambda: AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2), 2)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=_unet(0, (8, 16)), scheduler=SCHEDULERS["ddim"](),
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip


def _svd_unet(seed: int, channels: Sequence[int]) -> Any:
    return seeded(
        lambda: UNetSpatioTemporalConditionModel(
            sample_size=8, in_channels=8, out_channels=4, layers_per_block=1, block_out_channels=tuple(channels),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_frames=3,
            cross_attention_dim=16, num_attention_heads=2, addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
        ),
        seed,
    )  # fmt: skip


def _stable_video() -> Any:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, projection_dim=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=224, patch_size=56,
    )  # fmt: skip
    return StableVideoDiffusionPipeline(
        vae=seeded(lambda: AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32)
        ), 2),
        image_encoder=seeded(lambda: CLIPVisionModelWithProjection(vision), 3), unet=_svd_unet(0, (32, 64)),
        scheduler=SCHEDULERS["euler-v"](), feature_extractor=CLIPImageProcessor(),
    )  # fmt: skip


def _motion_unet(seed: int, channels: Sequence[int]) -> Any:
    return seeded(
        lambda: UNetMotionModel(
            sample_size=8, layers_per_block=1, block_out_channels=tuple(channels), norm_num_groups=2,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), cross_attention_dim=16, num_attention_heads=2,
            motion_num_attention_heads=2,
        ),
        seed,
    )  # fmt: skip


def _animatediff() -> Any:
    vae = seeded(lambda: AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2), 2)
    return AnimateDiffPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=_motion_unet(0, (8, 16)), motion_adapter=None,
        scheduler=SCHEDULERS["ddim"](),
    )  # fmt: skip


FLOW = ("unipc", "euler", "dpm++2m")

FAMILIES = {
    family.name: family
    for family in (
        Family("wan", tiny_wan_pipeline, tiny_wan_denoiser, lambda b: text(b, 16) | SIZE, FLOW),
        Family(
            "wan-i2v",
            _wan_i2v,
            lambda: _wan_i2v_denoiser(1, 1, 1),
            lambda b: text(b, 16) | SIZE | {"image": still()},
            FLOW,
        ),
        Family("ltx", tiny_ltx_pipeline, tiny_ltx_denoiser, lambda b: masked_text(b, 16) | SIZE, ("unipc", "euler")),
        Family(
            "ltx-condition",
            _ltx_condition,
            tiny_ltx_denoiser,
            lambda b: masked_text(b, 16) | SIZE | {"image": still(), "strength": 0.7},
            ("euler",),
        ),
        Family(
            "ltx2",
            _ltx2,
            lambda: _ltx2_denoiser(1, 1),
            lambda b: masked_text(b, 32, dtype=torch.int64) | SIZE | {"spatio_temporal_guidance_blocks": [0]},
            ("euler", "unipc"),
        ),
        Family(
            "cogvideox",
            _cogvideox,
            lambda: _cogvideox_denoiser(1, 1),
            lambda b: text(b, 16) | {"height": 16, "width": 16, "num_frames": 9},
            ("cogvideox-ddim", "cogvideox-dpm", "unipc, v", "dpm++2m, v"),
        ),
        Family(
            "mochi",
            _mochi,
            lambda: _mochi_denoiser(1, 1),
            lambda b: masked_text(b, 16, dtype=torch.bool) | {"height": 16, "width": 16, "num_frames": 7},
            ("euler", "unipc"),
        ),
    )
}

SKYREELS = Family(
    "skyreels-v2", skyreels, lambda: _skyreels_denoiser(1, 1, 1), lambda b: text(b, 16) | SIZE, ("unipc",)
)
STABLE_DIFFUSION = Family(
    "stable-diffusion",
    _stable_diffusion,
    lambda: _unet(1, (4, 8)),
    lambda b: text(b, 16) | {"height": 16, "width": 16},
    ("ddim", "pndm", "euler-epsilon", "heun-epsilon"),
    slot="unet",
)
STABLE_VIDEO = Family(
    "stable-video",
    _stable_video,
    lambda: _svd_unet(1, (32, 32)),
    lambda b: {"image": [still()] * b, "height": 16, "width": 16, "num_frames": 3, "decode_chunk_size": 3},
    ("euler-v",),
    slot="unet",
)
ANIMATEDIFF = Family(
    "animatediff",
    _animatediff,
    lambda: _motion_unet(1, (4, 8)),
    lambda b: text(b, 16) | {"height": 16, "width": 16, "num_frames": 3},
    ("ddim", "euler-epsilon"),
    slot="unet",
)
UNETS = (STABLE_DIFFUSION, STABLE_VIDEO, ANIMATEDIFF)
VIDEO_TO_VIDEO = Family(
    "wan-v2v",
    _wan_v2v,
    tiny_wan_denoiser,
    lambda b: text(b, 16) | {"height": 32, "width": 32, "video": [still()] * 9, "strength": 0.6},
    FLOW,
)
