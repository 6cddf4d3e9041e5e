"""Which pairs are refused, why, and that pairs of published models pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import flowblend_plugins as fb
from flowblend_plugins import testing
from flowblend_plugins.pairs.configs import configs_of_folder, configs_of_pipeline, denoiser_config
from flowblend_plugins.pairs.facts import Config, differences

CopyOf = Callable[[str], Path]


def refusal(pipe: Any, small: Any) -> str:
    before = dict(pipe.components), dict(pipe.config), type(pipe), type(pipe.transformer)
    with pytest.raises(fb.PairError) as caught:
        fb.enable(pipe, small=small)
    assert (dict(pipe.components), dict(pipe.config), type(pipe), type(pipe.transformer)) == before
    message = str(caught.value)
    assert "\n" not in message
    assert "To do: " in message
    return message


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def small_wan(**changes: Any) -> Any:
    config = {key: value for key, value in testing.tiny_wan_denoiser().config.items() if not key.startswith("_")}
    return diffusers.WanTransformer3DModel(**(config | changes))


# What a denoiser is fed, each on a really built model -------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"in_channels": 6}, "latent channels in (in_channels): 6, but 4 for the large one"),
        ({"out_channels": 6}, "latent channels out (out_channels): 6, but 4 for the large one"),
        ({"patch_size": (1, 1, 1)}, "patch size (patch_size): 1x1x1, but 1x2x2 for the large one"),
        ({"text_dim": 24}, "cross_attention_dim ...): 24, but 16 for the large one"),
        ({"image_dim": 8, "added_kv_proj_dim": 12}, "image embedding width (image_dim): 8, but none for the large one"),
        ({"image_dim": 8, "added_kv_proj_dim": 12}, "image attention (added_kv_proj_dim): yes, but no for the large"),
    ],
)
def test_a_difference_in_what_the_denoiser_is_fed(pipe: Any, changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(pipe, small_wan(**changes))


def test_a_stored_denoiser_is_judged_alike(pipe: Any, tmp_path: Path) -> None:
    small_wan(in_channels=6, out_channels=6).save_pretrained(tmp_path / "six")
    assert "(in_channels): 6, but 4 for the large one" in refusal(pipe, tmp_path / "six")


def test_every_difference_is_named_at_once(pipe: Any) -> None:
    message = refusal(pipe, small_wan(in_channels=6, text_dim=24, patch_size=(1, 1, 1)).to(torch.float64))
    for expected in ("in_channels): 6", "...): 24", "patch_size): 1x1x1", "dtype: torch.float64, but torch.float32"):
        assert expected in message


def test_dtype_of_a_loaded_denoiser(pipe: Any) -> None:
    message = refusal(pipe, testing.tiny_wan_denoiser().to(torch.bfloat16))
    assert "dtype: torch.bfloat16, but torch.float32 for the large one" in message
    assert "small.to(torch.float32)" in message


def test_device_of_a_loaded_denoiser(pipe: Any) -> None:
    message = refusal(pipe, testing.tiny_wan_denoiser().to("meta"))
    assert "device: meta, but cpu for the large one" in message
    assert "small.to('cpu')" in message


def test_device_is_left_to_offloading(pipe: Any) -> None:
    small = testing.tiny_wan_denoiser()
    small.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    fb.enable(pipe, small=small).disable()


def test_the_large_denoiser_itself(pipe: Any) -> None:
    for small in (pipe.transformer, pipe):
        with pytest.raises(fb.PairError, match="is the large denoiser itself"):
            fb.enable(pipe, small=small)


def test_a_module_that_is_no_diffusers_model(pipe: Any) -> None:
    with pytest.raises(fb.PairError, match=r"denoiser S \(a Linear\) is no diffusers model"):
        fb.enable(pipe, small=nn.Linear(2, 2))


def test_another_family_is_refused_by_its_arguments_too(pipe: Any) -> None:
    message = refusal(pipe, testing.tiny_ltx_denoiser())
    assert "arguments needed by forward(): with encoder_attention_mask" in message
    ltx = testing.tiny_ltx_pipeline()
    message = refusal(ltx, testing.tiny_wan_denoiser())
    assert "arguments taken by forward(): without them, but with encoder_attention_mask" in message
    assert "rope_interpolation_scale" in message
    assert "video_coords" not in message, "LTXPipeline never passes it"


def test_a_unet_beside_a_transformer(pipe: Any) -> None:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        in_channels=4,
    )
    assert "kind of denoiser: unet, but transformer for the large one" in refusal(pipe, unet)


# What surrounds a denoiser in its pipeline -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("vae", {"latents_mean": [-0.75, 0.1, 0.3, 1.4]}, "VAE latents_mean: -0.75x0.1x0.3x1.4, but -0.75x0.1x0.3x1.2"),
        ("vae", {"latents_std": [2.8, 1.4, 2.3, 2.0]}, "VAE latents_std: 2.8x1.4x2.3x2, but 2.8x1.4x2.3x1.9"),
        ("vae", {"z_dim": 8}, "VAE latent channels (z_dim, latent_channels): 8, but 4"),
        ("vae", {"_class_name": "AutoencoderKL"}, "VAE class: AutoencoderKL, but AutoencoderKLWan"),
        ("text_encoder", {"d_model": 24}, "text_encoder width (d_model, hidden_size): 24, but 16"),
        ("text_encoder", {"vocab_size": 64}, "text_encoder vocabulary (vocab_size): 64, but 32"),
        ("text_encoder", {"model_type": "t5"}, "text_encoder type (model_type): t5, but umt5"),
        ("scheduler", {"prediction_type": "epsilon"}, "prediction type (prediction_type): epsilon, but flow"),
        ("scheduler", {"prediction_type": "v_prediction"}, "prediction type (prediction_type): v_prediction, but flow"),
        ("scheduler", {"num_train_timesteps": 500}, "training timesteps (num_train_timesteps): 500, but 1000"),
        ("", {"expand_timesteps": True}, "timestep for every token (expand_timesteps): yes, but no"),
    ],
)
def test_a_difference_around_the_denoiser(
    pipe: Any, copy_of: CopyOf, file: str, changes: dict[str, Any], expected: str
) -> None:
    folder = copy_of("wan")
    names = {"scheduler": "scheduler/scheduler_config.json", "": "model_index.json"}
    edit_json(folder / names.get(file, f"{file}/config.json"), **changes)
    message = refusal(pipe, folder)
    assert f"{expected} for the large one" in message
    assert message.count(" for the large one") == 1, "one change is one difference"


def test_a_loaded_pipeline_is_judged_like_a_stored_one(pipe: Any) -> None:
    other = testing.tiny_wan_pipeline(seed=7)
    other.scheduler = diffusers.UniPCMultistepScheduler(prediction_type="epsilon")
    message = refusal(pipe, other)
    assert "VAE latents_mean" in message
    assert "prediction type (prediction_type): epsilon, but flow" in message


def test_a_denoiser_alone_says_nothing_of_its_vae(pipe: Any, copy_of: CopyOf) -> None:
    folder = copy_of("wan")
    edit_json(folder / "vae" / "config.json", latents_std=[1.0, 1.0, 1.0, 1.0])
    fb.enable(pipe, small=folder / "transformer").disable()
    fb.enable(pipe, small=testing.tiny_wan_denoiser()).disable()


@pytest.mark.parametrize("sampler", ["FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_another_sampler_of_the_same_prediction_is_no_difference(pipe: Any, saved: Path, sampler: str) -> None:
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True} if "DPM" in sampler else {}
    pipe.scheduler = getattr(diffusers, sampler)(**flow)
    fb.enable(pipe, small=saved / "wan").disable()


def test_latent_statistics_beside_the_weights(saved: Path, copy_of: CopyOf) -> None:
    """LTX keeps them as buffers: not in a config, yet the latent space is another where they differ."""
    pipe = testing.tiny_ltx_pipeline()
    with pytest.raises(fb.PairError, match=r"VAE latents_mean: 0\.1 in channel 1, but 0 in channel 1 for the large"):
        fb.enable(pipe, small=saved / "ltx")
    pipe.vae.latents_mean += torch.arange(8) / 10
    fb.enable(pipe, small=saved / "ltx").disable()
    pipe.vae.to(torch.bfloat16)
    pipe.transformer.to(torch.bfloat16)
    fb.enable(pipe, small=saved / "ltx").disable()


def test_a_saved_pipeline_is_described_as_when_loaded(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    stored = configs_of_folder(tmp_path, tmp_path / "transformer", type(pipe.transformer))
    loaded = configs_of_pipeline(pipe, "transformer")
    assert stored.keys() == loaded.keys() == {"denoiser", "pipeline", "vae", "scheduler", "text_encoder"}
    assert not [*differences(loaded, stored)]


def test_two_unlike_experts_of_one_family_pass(pipe: Any) -> None:
    """Widths, heads, layers and feed-forward sizes are a denoiser's own business."""
    fb.enable(pipe, small=small_wan(num_attention_heads=3, num_layers=3, ffn_dim=64, qk_norm=None)).disable()


# Published pairs, by their public configs ---------------------------------------------------------------------------

WAN_VAE = {
    "class": "AutoencoderKLWan",
    "z_dim": 16,
    "latents_mean": [-0.7571, -0.7089, -0.9113, 0.1075],
    "latents_std": [2.8184, 1.4541, 2.3275, 2.6558],
}
WAN = {"in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "text_dim": 4096, "freq_dim": 256}
WAN_14B = WAN | {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
WAN_1_3B = WAN | {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
WAN_I2V = {"in_channels": 36, "image_dim": 1280}
LTX = {"in_channels": 128, "out_channels": 128, "patch_size": 1, "patch_size_t": 1, "caption_channels": 4096}
COGVIDEOX = {"in_channels": 16, "out_channels": 16, "patch_size": 2, "text_embed_dim": 4096, "attention_head_dim": 64}
SD3 = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}
SDXL = {
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def described(class_name: str, config: Mapping[str, Any]) -> Config:
    return denoiser_config(getattr(diffusers, class_name), config)


@pytest.mark.parametrize(
    ("class_name", "large", "small"),
    [
        pytest.param("WanTransformer3DModel", WAN_14B, WAN_1_3B, id="Wan 2.1 T2V 14B and 1.3B"),
        pytest.param("WanTransformer3DModel", WAN_14B, WAN_14B, id="Wan 2.2 experts"),
        pytest.param(  # added_kv_proj_dim is the denoiser's own width
            "WanTransformer3DModel",
            WAN_14B | WAN_I2V | {"added_kv_proj_dim": 5120},
            WAN_1_3B | WAN_I2V | {"added_kv_proj_dim": 1536},
            id="Wan I2V 14B and 1.3B",
        ),
        pytest.param(  # cross_attention_dim is the denoiser's own width
            "LTXVideoTransformer3DModel",
            LTX | {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096},
            LTX | {"num_layers": 28, "attention_head_dim": 64, "cross_attention_dim": 2048},
            id="LTX-Video 13B and 2B",
        ),
        pytest.param(
            "SD3Transformer2DModel",
            SD3
            | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192},
            SD3
            | {
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 384,
                "dual_attention_layers": list(range(13)),
            },
            id="SD 3.5 large and medium",
        ),
        pytest.param(
            "UNet2DConditionModel",
            SDXL | {"transformer_layers_per_block": [1, 2, 10], "mid_block_type": "UNetMidBlock2DCrossAttn"},
            SDXL | {"transformer_layers_per_block": [[1, 1], [2, 2], [4, 4]], "mid_block_type": "UNetMidBlock2D"},
            id="SDXL and SSD-1B",
        ),
    ],
)
def test_published_pairs_pass(class_name: str, large: Mapping[str, Any], small: Mapping[str, Any]) -> None:
    sides = [{"denoiser": described(class_name, config), "vae": WAN_VAE} for config in (large, small)]
    assert not [*differences(sides[0], sides[1])]


def test_wan_text_to_video_and_image_to_video_do_not_mix() -> None:
    image = described("WanTransformer3DModel", WAN_1_3B | WAN_I2V | {"added_kv_proj_dim": 1536})
    found = differences({"denoiser": described("WanTransformer3DModel", WAN_14B)}, {"denoiser": image})
    assert [d.meaning.split(" (")[0] for d in found] == [
        "latent channels in",
        "image embedding width",
        "image attention",
    ]


def test_cogvideox_2b_and_5b_share_no_latent_space_positions_or_noise_levels() -> None:
    """2B adds learned positions where 5B is handed rotary ones, and their VAE scaling and SNR shift differ."""
    scheduler = {"class": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction", "beta_start": 0.00085}

    def side(rotary: bool, heads: int, scaling_factor: float, snr_shift_scale: float) -> dict[str, Config]:
        config = COGVIDEOX | {"use_rotary_positional_embeddings": rotary, "num_attention_heads": heads}
        return {
            "denoiser": described("CogVideoXTransformer3DModel", config),
            "vae": {"class": "AutoencoderKLCogVideoX", "scaling_factor": scaling_factor, "latent_channels": 16},
            "scheduler": scheduler | {"snr_shift_scale": snr_shift_scale},
        }

    large, small = side(True, 48, 0.7, 1.0), side(False, 30, 1.15258426, 3.0)
    found = {d.meaning: (d.large, d.small) for d in differences(large, small)}
    assert found == {
        "rotary positions (use_rotary_positional_embeddings)": ("yes", "no"),
        "VAE scaling_factor": ("0.7", "1.15258"),
        "noise schedule (snr_shift_scale)": ("1", "3"),
    }
    assert not [*differences(side(True, 48, 0.7, 1.0), side(True, 30, 0.7, 1.0))]


@pytest.mark.parametrize(
    ("class_name", "key", "large", "small", "refused"),
    [
        ("HunyuanVideoTransformer3DModel", "guidance_embeds", True, False, True),
        ("HunyuanVideoTransformer3DModel", "text_embed_dim", 4096, 3584, True),
        ("HunyuanVideoTransformer3DModel", "num_layers", 20, 10, False),
        ("LTX2VideoTransformer3DModel", "timestep_scale_multiplier", 1000, 1, True),
        ("LTX2VideoTransformer3DModel", "caption_channels", 3840, 4096, True),
        ("LTX2VideoTransformer3DModel", "cross_attention_dim", 4096, 2048, False),
        ("UNet2DConditionModel", "time_cond_proj_dim", 256, None, True),
        ("UNet2DConditionModel", "cross_attention_dim", 2048, 1280, True),
        ("FluxTransformer2DModel", "pooled_projection_dim", 768, 1024, True),
        ("WanVACETransformer3DModel", "vace_layers", [0, 5, 10], [0, 2, 4, 6], False),
        ("CosmosTransformer3DModel", "text_embed_dim", 1024, 4096, True),
        ("MochiTransformer3DModel", "attention_head_dim", 128, 64, False),
        ("CogVideoXTransformer3DModel", "attention_head_dim", 64, 32, True),
        ("CogVideoXTransformer3DModel", "ofs_embed_dim", 512, None, True),
        ("CogVideoXTransformer3DModel", "max_text_seq_length", 226, 224, True),
        ("CogVideoXTransformer3DModel", "patch_size_t", 2, None, True),
        ("WanVACETransformer3DModel", "vace_in_channels", 96, 48, True),
        ("HunyuanVideoTransformer3DModel", "image_condition_type", "latent_concat", "token_replace", True),
        ("HunyuanVideo15Transformer3DModel", "text_embed_2_dim", 1472, 1024, True),
        ("HunyuanVideo15Transformer3DModel", "use_meanflow", True, False, True),
        ("LTX2VideoTransformer3DModel", "audio_in_channels", 128, 64, True),
        ("LTX2VideoTransformer3DModel", "vae_scale_factors", [8, 32, 32], [4, 16, 16], True),
        ("Kandinsky5Transformer3DModel", "in_visual_dim", 16, 4, True),
        ("Kandinsky5Transformer3DModel", "model_dim", 4096, 1792, False),
        ("UNet2DConditionModel", "addition_embed_type", "text_time", None, True),
        ("UNet2DConditionModel", "addition_time_embed_dim", 256, None, True),
        ("UNet2DConditionModel", "projection_class_embeddings_input_dim", 2816, 2560, True),
        ("UNet2DConditionModel", "class_embed_type", "timestep", None, True),
        ("UNetSpatioTemporalConditionModel", "block_out_channels", [320, 640], [160, 320], False),
    ],
)
def test_one_key_of_a_denoiser(class_name: str, key: str, large: Any, small: Any, refused: bool) -> None:
    assert key in described(class_name, {}), "a key that the class does not have would prove nothing"
    sides = [{"denoiser": described(class_name, {key: value})} for value in (large, small)]
    assert bool([*differences(sides[0], sides[1])]) is refused


def test_with_a_projection_in_front_the_inner_text_width_is_free() -> None:
    front = {"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"}
    large = described("UNet2DConditionModel", front | {"cross_attention_dim": 2048})
    small = described("UNet2DConditionModel", front | {"cross_attention_dim": 1280})
    assert not [*differences({"denoiser": large}, {"denoiser": small})]
    projected = {"use_crossattn_projection": True, "crossattn_proj_in_channels": 100352}
    large = described("CosmosTransformer3DModel", projected | {"text_embed_dim": 1024})
    small = described("CosmosTransformer3DModel", projected | {"text_embed_dim": 512})
    assert not [*differences({"denoiser": large}, {"denoiser": small})]


@pytest.mark.parametrize(
    ("key", "small"),
    [("beta_schedule", "linear"), ("beta_start", 0.0001), ("beta_end", 0.02), ("rescale_betas_zero_snr", True)],
)
def test_noise_schedules_differ_only_without_flow_matching(key: str, small: Any) -> None:
    """There a timestep says how noisy the latents are only together with the betas; under flow matching it is sigma."""
    betas = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": False,
    }
    for prediction, refused in (("epsilon", True), ("flow_prediction", False)):
        large = {"class": "DPMSolverMultistepScheduler", "prediction_type": prediction} | betas
        found = [*differences({"scheduler": large}, {"scheduler": large | {key: small}})]
        assert [d.meaning for d in found] == [f"noise schedule ({key})"] * refused


def test_vae_shift_factor() -> None:
    large = {"class": "AutoencoderKL", "scaling_factor": 1.5305, "shift_factor": 0.0609}
    found = [*differences({"vae": large}, {"vae": large | {"shift_factor": 0.1159}})]
    assert [(d.meaning, d.large, d.small) for d in found] == [("VAE shift_factor", "0.0609", "0.1159")]


def test_statistics_rounded_to_half_precision_are_the_same() -> None:
    exact = torch.tensor([0.1075, -0.7571, 2.8184, 1e-4])
    rounded = exact.bfloat16().float().tolist()
    assert not [*differences({"vae": {"latents_std": exact.tolist()}}, {"vae": {"latents_std": rounded}})]
    assert [*differences({"vae": {"scaling_factor": 0.13025}}, {"vae": {"scaling_factor": 0.18215}})]


def test_published_presets_are_registered_through_the_entry_point() -> None:
    from flowblend_plugins.manager import make_plugin_manager, pairs_by_name

    manager = make_plugin_manager()
    assert "published_pairs" in manager.origins
    wan = pairs_by_name(manager)["wan2.1-t2v"]
    assert (wan.large, wan.small) == ("Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    accepted = set(diffusers.WanPipeline.__call__.__wrapped__.__code__.co_varnames)  # type: ignore[attr-defined]
    assert wan.call_defaults.keys() <= accepted
