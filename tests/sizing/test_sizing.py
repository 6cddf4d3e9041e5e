"""Memory from shapes alone, against what torch's allocator says of the same models and pipelines, really run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from flowblend_plugins.pairs.preset import PairPreset, PublishedDenoiser
from flowblend_plugins.published_pairs.ltx import LTX_0_9_7
from flowblend_plugins.published_pairs.wan import WAN_2_1_T2V, WAN_2_1_VACE
from flowblend_plugins.schedule import StageSchedule
from flowblend_plugins.sizing.calls import VideoSize, call_inputs
from flowblend_plugins.sizing.pair import SizedPair, size_pair
from flowblend_plugins.sizing.placements import GIB, cheapest, placements
from flowblend_plugins.testing import tiny_ltx_pipeline, tiny_wan_pipeline
from flowblend_plugins.trace.flops import TensorInput, describe_inputs
from flowblend_plugins.trace.memory import ModuleMemory, build_in, denoiser_memory
from flowblend_research.full_size.pairs import LTX, WAN, FullSizePair

WAN_CONFIG = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 512, "num_layers": 3, "text_dim": 64}
LTX_CONFIG = {
    "num_attention_heads": 4, "attention_head_dim": 32, "cross_attention_dim": 128, "num_layers": 3,
    "caption_channels": 64,
}  # fmt: skip
KINDS = {"WanTransformer3DModel": WAN_CONFIG, "LTXVideoTransformer3DModel": LTX_CONFIG}
CALLS = {
    "WanTransformer3DModel": {
        "hidden_states": torch.zeros(1, 16, 5, 16, 16),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.zeros(1, 64, 64),
        "return_dict": False,
    },
    "LTXVideoTransformer3DModel": {
        "hidden_states": torch.zeros(2, 256, 128),
        "timestep": torch.tensor([5.0, 5.0]),
        "encoder_hidden_states": torch.zeros(2, 64, 64),
        "encoder_attention_mask": torch.ones(2, 64),
        "num_frames": 4,
        "height": 8,
        "width": 8,
        "return_dict": False,
    },
}


def allocated(call: Callable[[], object]) -> int:
    """The peak of bytes that torch's CPU allocator had given out during a call, beyond those before it."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def diffusers_class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", KINDS)
def test_a_forward_allocates_what_was_computed(name: str, dtype: torch.dtype) -> None:
    model_class, config, call = diffusers_class(name), KINDS[name], CALLS[name]
    found = denoiser_memory(model_class, config, describe_inputs((), call), dtype)
    model = build_in(dtype, lambda: model_class(**config))
    real = {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in call.items()
    }
    with torch.no_grad():
        model(**real)
    assert found.peak == pytest.approx(allocated(lambda: model(**real)), rel=0.01)
    tensors = [*model.parameters(), *model.buffers()]
    assert found.weights == sum(one.numel() * one.element_size() for one in tensors)
    assert found.num_parameters == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_float8_weights_are_those_that_diffusers_casts(name: str) -> None:
    model_class, config = diffusers_class(name), KINDS[name]
    found = denoiser_memory(model_class, config, describe_inputs((), CALLS[name]), torch.bfloat16)
    model = build_in(torch.bfloat16, lambda: model_class(**config))
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    assert found.float8_weights == sum(one.numel() * one.element_size() for one in tensors)
    assert found.float8_weights < 0.7 * found.weights


def published(pair: FullSizePair, config: dict[str, Any]) -> PairPreset:
    sizes = {"L": config, "S": config | {"num_layers": 1}}
    return PairPreset(
        name="tiny",
        large="a/b",
        small="a/c",
        source="here",
        published={
            letter: PublishedDenoiser(class_name=pair.class_name, config=one, num_parameters=0, source="here")
            for letter, one in sizes.items()
        },
    )


@pytest.mark.parametrize(
    ("pair", "size", "tokens"),
    [(WAN, VideoSize(128, 128, 17), 512), (LTX, VideoSize(256, 256, 33), 256)],
    ids=["wan", "ltx"],
)
def test_a_pair_takes_what_its_pipeline_really_allocates(pair: FullSizePair, size: VideoSize, tokens: int) -> None:
    """Within 5 %: the pipeline holds its latents besides, which the published widths make small."""
    config = KINDS[pair.class_name] | {"attention_head_dim": 256, "num_layers": 2}
    if pair is LTX:
        config["cross_attention_dim"] = 1024
    found = size_pair(published(pair, config), size, has_guidance=True)
    model = build_in(torch.bfloat16, lambda: diffusers_class(pair.class_name)(**config))
    pipe = pair.make_pipeline(model)
    text = {
        name: torch.zeros(1, tokens, 64, dtype=torch.bfloat16) for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    if pair is LTX:
        masks = ("prompt_attention_mask", "negative_prompt_attention_mask")
        text |= {name: torch.ones(1, tokens, dtype=torch.bool) for name in masks}

    def generate() -> object:
        return pipe(**text, **size._asdict(), num_inference_steps=2, guidance_scale=5.0, output_type="latent")

    assert found.denoisers["L"].peak == pytest.approx(allocated(generate), rel=0.05)
    assert found.calls_per_step == (2 if pair is WAN else 1)


@pytest.mark.parametrize(
    ("make", "class_name", "size"),
    [
        (tiny_wan_pipeline, "WanTransformer3DModel", VideoSize(32, 64, 9)),
        (tiny_ltx_pipeline, "LTXVideoTransformer3DModel", VideoSize(64, 32, 17)),
    ],
)
def test_the_inputs_are_those_that_the_pipeline_passes(make: Any, class_name: str, size: VideoSize) -> None:
    """The compression of the tiny pipelines' VAE is another, and their texts are shorter; the rest is the same."""
    pipe = make()
    pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal = 8, 4
    pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio = 32, 8
    seen: dict[str, Any] = {}

    def see(module: object, args: object, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
    width = pipe.transformer.config.get("text_dim") or pipe.transformer.config["caption_channels"]
    tokens = 512 if class_name.startswith("Wan") else 256
    text: dict[str, Any] = {name: torch.zeros(1, tokens, width) for name in ("prompt_embeds", "negative_prompt_embeds")}
    if tokens == 256:
        text |= {f"{name}_attention_mask": torch.ones(1, tokens) for name in ("prompt", "negative_prompt")}
    pipe(**text, **size._asdict(), num_inference_steps=1, guidance_scale=5.0, output_type="latent")
    expected = call_inputs(class_name, pipe.transformer.config, size, has_guidance=True).kwargs
    for name, value in expected.items():
        got = seen[name]
        assert (got.shape == value.shape) if isinstance(value, TensorInput) else (got == value), name


@pytest.mark.parametrize("preset", [WAN_2_1_T2V, LTX_0_9_7], ids=lambda one: one.name)
@pytest.mark.parametrize("name", ["text_encoder", "vae"])
def test_published_components_have_the_stated_sizes(preset: PairPreset, name: str) -> None:
    import transformers

    one = preset.around[name]
    with torch.device("meta"):
        if name == "vae":
            module = diffusers_class(one.class_name).from_config(one.config)
        else:
            encoder_class = getattr(transformers, one.class_name)
            module = encoder_class(encoder_class.config_class(**one.config))
    assert sum(weight.numel() for weight in module.parameters()) == one.num_parameters


def sized() -> SizedPair:
    def memory(weights: int, peak: int) -> ModuleMemory:
        return ModuleMemory(weights * GIB, weights * GIB // 2, peak * GIB, 0, GIB // 4)

    denoisers, around = {"L": memory(28, 4), "S": memory(4, 2)}, {"text_encoder": memory(10, 1), "vae": memory(1, 5)}
    return SizedPair(denoisers, {}, around, 2)


def test_placements_by_hand() -> None:
    found = {one.name: one for one in placements(sized(), StageSchedule.parse("LSL"), 10)}
    assert found["all on the GPU"].peak == (10 + 1 + 28 + 4 + 5) * GIB
    # The small denoiser is still there when the large one returns; the VAE's turn takes only the small one off.
    assert found["whole components in turn"].peak == max(10 + 1, 28 + 4 + 4, 1 + 5 + 28) * GIB
    assert found["whole components in turn"].copied == 43 * GIB
    assert found['idle="cpu"'].peak == (10 + 1 + max(28 + 4, 4 + 2, 28 + 5)) * GIB
    assert found['idle="prefetch"'].peak == (10 + 1 + 28 + 4 + 4) * GIB  # the small one comes in a large step
    assert found['idle="cpu"'].copied == (4 + 28) * GIB
    once = {one.name: one for one in placements(sized(), StageSchedule.parse("LSS"), 10)}
    assert once["whole components in turn"].peak == max(10 + 1, 28 + 4, 1 + 5) * GIB
    assert once['idle="cpu"'].copied == (4 + 28) * GIB  # the large one comes back for the next generation
    assert found["all on the GPU, denoisers stored in float8"].peak == (10 + 1 + 14 + 2 + 5) * GIB
    assert found["layers in turn"].copied == 2 * (6 * 28 + 4 * 4) * GIB + 11 * GIB


def test_the_cheapest_exact_one_that_fits_is_chosen() -> None:
    found = placements(sized(), StageSchedule.parse("LSL"), 10)
    chosen = {gib: cheapest(found, gib * GIB) for gib in (80, 48, 44, 16, 4)}
    assert [one and one.name for one in chosen.values()] == [
        "all on the GPU", 'idle="cpu"', "whole components in turn", "layers in turn", None
    ]  # fmt: skip


def test_the_command(flowblend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowblend_plugins.sizing.pair.size_pair", lambda *args: sized_with_flops())
    asked = ("doctor", "--pair", "wan2.1-t2v", "--num-frames", "81", "--gpu-memory", "44GiB")
    report = json.loads(flowblend(*asked, "--json").out)
    assert report["cheapest"] == "whole components in turn"
    assert report["size"] == {"height": 480, "width": 832, "num_frames": 81}
    assert report["schedules"]["LSL"]["share_of_large"] == pytest.approx((30 * 100 + 20 * 20) / 5000)
    shown = flowblend(*asked).out
    assert "pipe.enable_model_cpu_offload()" in shown
    assert flowblend(*asked[:-1], "4GiB").code == 1
    assert "say --gpu-memory" in flowblend(*asked[:-2]).out or torch.cuda.is_available()


def sized_with_flops() -> SizedPair:
    from flowblend_plugins.trace.flops import ForwardFlops

    return sized()._replace(flops={"L": ForwardFlops(50, 50, 100), "S": ForwardFlops(10, 10, 20)})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--pair", "wan2.1-t2v", "--height", "481"), "multiples of 16"),
        (("--pair", "wan2.1-t2v", "--gpu-memory", "lots"), "such as 24GiB"),
        (("--pair", "sd3.5"), "SD3Transformer2DModel is not computed"),
        (("--pair", "reference"), "no published configs"),
        (("--pair", "nonesuch"), "there is no such pair"),
    ],
)
def test_what_cannot_be_computed_is_said(flowblend: Callable[..., Any], arguments: Any, expected: str) -> None:
    result = flowblend("doctor", *arguments)
    assert result.code == 2
    assert expected in " ".join(result.err.split())


def test_control_layers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    config = WAN_2_1_VACE.published["S"].config
    inputs = call_inputs("WanVACETransformer3DModel", config, VideoSize(512, 512, 81), has_guidance=True).kwargs
    assert inputs["control_hidden_states"].shape == (1, 96, 21, 64, 64)
    assert inputs["control_hidden_states_scale"].shape == (15,)
