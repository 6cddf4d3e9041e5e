"""LoRAs that the user fuses, loads or switches while few-step weights are on: refused at once, or left as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from peft.tuners.tuners_utils import BaseTunerLayer

import flowblend_plugins as fb
from flowblend_plugins.testing import PipelineSnapshot, generate, tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.distilled_samplers.lora_files import EVERYTHING, write_denoiser, write_lora


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("loras")
    large = tiny_wan_pipeline(7).transformer
    return {
        "large": write_lora(root / "large", WanPipeline, tiny_wan_pipeline().transformer, 1, EVERYTHING),
        "small": write_lora(root / "small", WanPipeline, tiny_wan_denoiser(), 2, EVERYTHING),
        "style": write_lora(root / "style", WanPipeline, tiny_wan_pipeline().transformer, 3, ("to_q", "proj_out")),
        "other": write_lora(root / "other", WanPipeline, tiny_wan_pipeline().transformer, 4, ("to_k",)),
        "checkpoint": write_denoiser(root / "checkpoint", large),
    }


def few_steps(large: str, small: str) -> list[str]:
    return [f"distilled(large={large!r}, small={small!r}, num_inference_steps=4)"]


FUSING: dict[str, Callable[[Any], object]] = {
    "pipe.fuse_lora": lambda pipe: pipe.fuse_lora(components=["transformer"]),
    "pipe.unfuse_lora": lambda pipe: pipe.unfuse_lora(components=["transformer"]),
    "denoiser.fuse_lora": lambda pipe: pipe.transformer.fuse_lora(),
    "denoiser.unfuse_lora": lambda pipe: pipe.transformer.unfuse_lora(),
    "small.fuse_lora": lambda pipe: pipe.transformer_2.fuse_lora(),
}


@pytest.mark.parametrize("fusing", FUSING)
@pytest.mark.parametrize("has_own", [False, True])
def test_fusing_is_refused_at_once(loras: dict[str, str], fusing: str, has_own: bool) -> None:
    pipe = tiny_wan_pipeline()
    if has_own:
        pipe.load_lora_weights(loras["style"], adapter_name="style")
    plain = generate(pipe)
    before = PipelineSnapshot.of(pipe)
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=few_steps(loras["large"], loras["small"])):
        blended = generate(pipe, None)
        with pytest.raises(fb.StackError, match=r"fuse_lora.*'distilled'.*disable\(\)"):
            FUSING[fusing](pipe)
        assert torch.equal(generate(pipe, None), blended)
    assert torch.equal(generate(pipe), plain)
    assert before.differences(pipe) == []
    if has_own:
        pipe.fuse_lora(components=["transformer"])
        pipe.unfuse_lora(components=["transformer"])


def test_fusing_is_refused_while_a_checkpoint_is_on_too(loras: dict[str, str]) -> None:
    pipe = tiny_wan_pipeline()
    pipe.load_lora_weights(loras["style"], adapter_name="style")
    plain = generate(pipe)
    adapters = few_steps(loras["checkpoint"], loras["small"])
    with fb.enable(pipe, tiny_wan_denoiser(), adapters=adapters), pytest.raises(fb.StackError, match="fuse_lora"):
        pipe.fuse_lora(components=["transformer"])
    assert torch.equal(generate(pipe), plain)


def merge_layers(pipe: Any) -> None:
    for module in pipe.transformer.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()


def merge_and_unmerge_layers(pipe: Any) -> None:
    merge_layers(pipe)
    for module in pipe.transformer.modules():
        if isinstance(module, BaseTunerLayer):
            module.unmerge()


def change_a_weight(pipe: Any) -> None:
    pipe.transformer.blocks[1].attn1.to_q.base_layer.weight.data[3, 5] += 0.5


@pytest.mark.parametrize("change", [merge_layers, merge_and_unmerge_layers, change_a_weight])
def test_weights_that_changed_in_another_way_are_never_given_back_silently(
    loras: dict[str, str], change: Callable[[Any], None]
) -> None:
    pipe = tiny_wan_pipeline()
    blend = fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=few_steps(loras["large"], loras["small"]))
    scheduler = pipe.scheduler
    change(pipe)
    with pytest.raises(fb.StackError, match=r"weights of denoiser L were changed.*Load the denoiser again"):
        blend.disable()
    assert not blend.is_enabled
    assert pipe.scheduler is not scheduler  # all the rest is as it was
    assert not any(isinstance(module, BaseTunerLayer) for module in pipe.transformer.modules())
    assert generate(pipe).isfinite().all()


def test_merging_into_a_checkpoint_is_not_silent_either(loras: dict[str, str]) -> None:
    pipe = tiny_wan_pipeline()
    pipe.load_lora_weights(loras["style"], adapter_name="style")
    adapters = few_steps(loras["checkpoint"], loras["small"])
    blend = fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=adapters)
    merge_layers(pipe)
    with pytest.raises(fb.StackError, match="LoRAs were merged"):
        blend.disable()


def test_a_merge_is_refused_at_the_next_call_too(loras: dict[str, str]) -> None:
    pipe = tiny_wan_pipeline()
    blend = fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=few_steps(loras["large"], loras["small"]))
    merge_layers(pipe)
    with pytest.raises(fb.StackError, match="unloaded or made inactive since, or merged"):
        generate(pipe, None)
    with pytest.raises(fb.StackError, match="were changed"):
        blend.disable()


def load_another(pipe: Any, loras: dict[str, str]) -> None:
    pipe.load_lora_weights(loras["other"], adapter_name="other")


def weigh_own(pipe: Any, loras: dict[str, str]) -> None:
    pipe.set_adapters(["style"], [0.3])


def drop_own(pipe: Any, loras: dict[str, str]) -> None:
    pipe.delete_adapters("style")


def switch_off(pipe: Any, loras: dict[str, str]) -> None:
    pipe.disable_lora()


def unload_all(pipe: Any, loras: dict[str, str]) -> None:
    pipe.unload_lora_weights()


@pytest.mark.parametrize("change", [load_another, weigh_own, drop_own, switch_off, unload_all])
def test_what_else_the_user_does_to_loras_is_as_they_left_it(
    loras: dict[str, str], change: Callable[[Any, dict[str, str]], None]
) -> None:
    twin, pipe = tiny_wan_pipeline(), tiny_wan_pipeline()
    for one in (twin, pipe):
        one.load_lora_weights(loras["style"], adapter_name="style")
    change(twin, loras)
    expected = generate(twin)
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=few_steps(loras["large"], loras["small"])):
        generate(pipe, None)
        change(pipe, loras)
    assert torch.equal(generate(pipe), expected)
    assert pipe.get_list_adapters() == twin.get_list_adapters()
