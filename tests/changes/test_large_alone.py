"""Settings on the large denoiser alone: mirrored on the small one where they mean something, else refused."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    LayerSkipConfig,
    LTXPipeline,
    SkipLayerGuidance,
    StableDiffusionControlNetPipeline,
    WanPipeline,
)
from diffusers.hooks import apply_layer_skip
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.embeddings import ImageProjection
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

import flowblend_plugins as fb
from flowblend_plugins.testing import (
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.pipelines import STABLE_DIFFUSION

SCHEDULE = "L:3,S:3,L:2"


def skip_layers(denoiser: Any) -> None:
    apply_layer_skip(denoiser, LayerSkipConfig(indices=[1], fqn="blocks"))


class Halved(WanAttnProcessor):
    """Attention with another output, and without weights of its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 0.5 * super().__call__(*args, **kwargs)


class Weighted(torch.nn.Module):
    """Attention with weights of its own, as IP-Adapters have them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.plain = torch.nn.Parameter(torch.tensor(0.5)), WanAttnProcessor()

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.scale * self.plain(*args, **kwargs)


def halve_all(denoiser: Any) -> None:
    for block in denoiser.blocks:
        block.attn1.set_processor(Halved())


def weigh_all(denoiser: Any) -> None:
    for block in denoiser.blocks:
        block.attn1.set_processor(Weighted())


def halved_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return 0.5 * type(self).forward(self, hidden_states, *args, **kwargs)


def patch_a_block(denoiser: Any) -> None:
    block = denoiser.blocks[1]
    block.forward = types.MethodType(halved_forward, block)


SETTINGS: dict[str, Callable[[Any], None]] = {
    "skipped layers": skip_layers,
    "processors": halve_all,
    "forward of a block": patch_a_block,
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("later", [False, True], ids=["before enable", "after enable"])
def test_what_means_something_on_the_small_denoiser_is_mirrored(setting: str, later: bool) -> None:
    twin, twin_small = tiny_wan_pipeline(), tiny_wan_denoiser(layers=2)
    SETTINGS[setting](twin.transformer)
    SETTINGS[setting](twin_small)
    with fb.enable(twin, twin_small, SCHEDULE):
        expected = generate(twin, 8)
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser(layers=2)
    before = {key: value for key, value in snapshot(pipe, small).items() if key.startswith("further")}
    if not later:
        SETTINGS[setting](pipe.transformer)
    with fb.enable(pipe, small, SCHEDULE):
        if later:
            assert not torch.equal(generate(pipe, 8), expected)
            SETTINGS[setting](pipe.transformer)
        assert torch.equal(generate(pipe, 8), expected)
        assert torch.equal(generate(pipe, 8), expected)
    assert {key: value for key, value in snapshot(pipe, small).items() if key.startswith("further")} == before


@pytest.mark.parametrize("setting", [skip_layers, patch_a_block, weigh_all])
def test_what_means_nothing_there_is_refused_with_the_remedy(setting: Callable[[Any], None]) -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(layers=1), SCHEDULE) as blend:
        assert generate(pipe, 8).isfinite().all()
        setting(pipe.transformer)
        for _ in range(2):
            with pytest.raises(fb.RoutingError, match=r"set on the large denoiser.*denoiser S.*schedule that does not"):
                generate(pipe, 8)
        assert blend.is_enabled
    with pytest.raises(fb.RoutingError, match="was set on the large denoiser"):
        fb.enable(pipe, tiny_wan_denoiser(layers=1), SCHEDULE)
    plain = generate(pipe, 8)
    with fb.enable(pipe, tiny_wan_denoiser(layers=1), "LLL"):  # the small one is never called
        assert torch.equal(generate(pipe, 8), plain)


def test_a_hook_of_a_cache_that_nobody_adopts_is_refused() -> None:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    pipe = tiny_wan_pipeline()
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(fb.RoutingError, match="fbc_leader_block_hook"):
        fb.enable(pipe, tiny_wan_denoiser(layers=2), SCHEDULE)


def test_an_attention_backend_is_set_on_both_for_as_long_as_they_are_blended() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser(layers=2)
    with fb.enable(pipe, small, SCHEDULE):
        generate(pipe, 8)
        for block in pipe.transformer.blocks:
            block.attn1.processor._attention_backend = "_native_math"
        generate(pipe, 8)
        assert {block.attn1.processor._attention_backend for block in small.blocks} == {"_native_math"}
    assert {block.attn1.processor._attention_backend for block in small.blocks} == {None}


def test_fused_projections_are_no_change() -> None:
    pipe = tiny_wan_pipeline()
    pipe.transformer.fuse_qkv_projections()
    with fb.enable(pipe, tiny_wan_denoiser(), SCHEDULE):
        assert generate(pipe, 8).isfinite().all()


class PatchingPipeline(LTXPipeline):
    """Replaces the forward of a block within its call, and leaves it there, as community STG pipelines do."""

    @functools.wraps(LTXPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        block = self.transformer.transformer_blocks[0]
        block.forward = types.MethodType(halved_forward, block)
        return super().__call__(*args, **kwargs)


def patching_pipeline() -> Any:
    plain = tiny_ltx_pipeline()
    pipe = PatchingPipeline(**plain.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_what_a_pipeline_sets_within_its_call_is_mirrored_or_refused_at_the_switch() -> None:
    twin, twin_small = tiny_ltx_pipeline(), tiny_ltx_denoiser(layers=2)
    for denoiser in (twin.transformer, twin_small):
        block = denoiser.transformer_blocks[0]
        block.forward = types.MethodType(halved_forward, block)
    with fb.enable(twin, twin_small, SCHEDULE):
        expected = generate(twin, 8)
    pipe, small = patching_pipeline(), tiny_ltx_denoiser(layers=2)
    with fb.enable(pipe, small, SCHEDULE):
        assert torch.equal(generate(pipe, 8), expected)
        assert torch.equal(generate(pipe, 8), expected)
    assert "forward" not in vars(small.transformer_blocks[0])
    pipe = patching_pipeline()
    with fb.enable(pipe, tiny_ltx_denoiser(layers=1), SCHEDULE):
        for _ in range(2):
            with pytest.raises(fb.RoutingError, match=r"halved_forward.*set on the large denoiser"):
                generate(pipe, 8)


def load_ip_adapter(unet: Any) -> None:
    """Put on as ``pipe.load_ip_adapter`` does, from random weights."""
    layers, index = {}, 1
    for name in unet.attn_processors:
        if not name.endswith("attn1.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for key in ("to_k_ip", "to_v_ip"):
                layers[f"{index}.{key}.weight"] = torch.randn(width, unet.config.cross_attention_dim)
            index += 2
    projection = ImageProjection(
        cross_attention_dim=unet.config.cross_attention_dim, image_embed_dim=8, num_image_text_embeds=4
    )
    state = projection.state_dict()
    named = {"proj.weight": state["image_embeds.weight"], "proj.bias": state["image_embeds.bias"]}
    named |= {key: state[key] for key in ("norm.weight", "norm.bias")}
    unet._load_ip_adapter_weights([{"image_proj": named, "ip_adapter": layers}])


@pytest.mark.parametrize("later", [False, True], ids=["before enable", "after enable"])
def test_an_ip_adapter_is_refused_while_the_small_unet_has_none(later: bool) -> None:
    pipe, small = STABLE_DIFFUSION.pipe(), STABLE_DIFFUSION.make_small()
    embeds: dict[str, Any] = {"ip_adapter_image_embeds": [torch.ones(2, 1, 8)]}
    if later:
        with fb.enable(pipe, small, "LSL"):
            STABLE_DIFFUSION.run(pipe)
            load_ip_adapter(pipe.unet)
            with pytest.raises(fb.RoutingError, match=r"IPAdapterAttnProcessor.*unload_ip_adapter"):
                STABLE_DIFFUSION.run(pipe, **embeds)
    else:
        load_ip_adapter(pipe.unet)
        with pytest.raises(fb.RoutingError, match=r"IPAdapterAttnProcessor.*unload_ip_adapter"):
            fb.enable(pipe, small, "LSL")
    load_ip_adapter(small)
    with fb.enable(pipe, small, "LSL"):
        with_image = STABLE_DIFFUSION.run(pipe, **embeds)
        assert not torch.equal(with_image, STABLE_DIFFUSION.run(pipe, ip_adapter_image_embeds=[-torch.ones(2, 1, 8)]))


def test_older_attention_processors_are_mirrored_on_unets() -> None:
    pipe, small = STABLE_DIFFUSION.pipe(), STABLE_DIFFUSION.make_small()
    pipe.unet.set_attn_processor(AttnProcessor())
    with fb.enable(pipe, small, "LSL"):
        assert {type(one) for one in small.attn_processors.values()} == {AttnProcessor}
    assert AttnProcessor not in {type(one) for one in small.attn_processors.values()}


def test_a_controlnet_of_another_width_is_refused_at_enable() -> None:
    plain = STABLE_DIFFUSION.pipe()
    pipe = StableDiffusionControlNetPipeline(
        **plain.components, controlnet=ControlNetModel.from_unet(plain.unet), requires_safety_checker=False
    )
    with pytest.raises(fb.RoutingError, match=r"ControlNet.*block_out_channels.*same blocks"):
        fb.enable(pipe, STABLE_DIFFUSION.make_small(), "LSL")
    with fb.enable(pipe, STABLE_DIFFUSION.make_small(), "LLL"):
        pass
    twin = STABLE_DIFFUSION.pipe().unet
    with fb.enable(pipe, twin, "LSL"):
        pass


class GuidedPipeline(WanPipeline):
    """Wan with a guider as a component, as HunyuanVideo 1.5 has one."""

    def __init__(
        self, tokenizer: Any, text_encoder: Any, vae: Any, scheduler: Any, transformer: Any, guider: Any,
        transformer_2: Any = None, boundary_ratio: float | None = None, expand_timesteps: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, text_encoder, vae, scheduler, transformer, transformer_2, boundary_ratio)
        self.register_modules(guider=guider)


def test_a_guider_that_skips_layers_is_refused() -> None:
    guider = SkipLayerGuidance(skip_layer_guidance_layers=[1])
    pipe = GuidedPipeline(**tiny_wan_pipeline().components, guider=guider)
    with pytest.raises(fb.RoutingError, match=r"guider.*SkipLayerGuidance.*ClassifierFreeGuidance"):
        fb.enable(pipe, tiny_wan_denoiser(), "LSL")
