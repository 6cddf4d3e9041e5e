"""Offloading, saving and LoRAs, each before and after ``enable()``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file

import flowblend_plugins as fb
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.alignment import place
from tests.exactness.oracles import swapped
from tests.exactness.pipelines import FAMILIES, SKYREELS, STABLE_DIFFUSION, UNETS, Family, plain_latents

SOME = [FAMILIES["wan"], FAMILIES["ltx"], FAMILIES["mochi"], STABLE_DIFFUSION]
EVERY = [*FAMILIES.values(), SKYREELS, *UNETS]
some = pytest.mark.parametrize("family", SOME, ids=lambda family: family.name)
every = pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
LSL = "LLSSSL"


def blended_plainly(family: Family) -> torch.Tensor:
    pipe = family.pipe()
    return swapped(family, pipe, {"L": getattr(pipe, family.slot), "S": family.make_small()}, LSL)


def offload_models(pipe: Any) -> None:
    # accelerate's hooks run as on a GPU; only the copies are from host to host.
    pipe.enable_model_cpu_offload(device="cpu")


def offload_groups(pipe: Any) -> None:
    cpu = torch.device("cpu")
    pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@some
@pytest.mark.parametrize("offload", [offload_models, offload_groups])
@pytest.mark.parametrize("when", ["before", "after"])
def test_offloading(family: Family, offload: Callable[[Any], None], when: str) -> None:
    pipe, small = family.pipe(), family.make_small()
    plain = family.run(pipe)
    if when == "before":
        offload(pipe)
        assert torch.equal(family.run(pipe), plain)
    before = snapshot(pipe, small, addresses=False)
    blend = fb.enable(pipe, small, "LSL")
    if when == "after":
        offload(pipe)
    if offload is offload_models:
        assert hasattr(small, "_hf_hook")  # it takes part from the first generation on
    expected = blended_plainly(family)
    for _ in range(3):  # a root hook of our own would be lost when offloading is put on again after each generation
        assert torch.equal(family.run(pipe), expected)
    blend.disable()
    if offload is offload_models:
        assert not hasattr(small, "_hf_hook")
        if when == "before":
            assert snapshot(pipe, small, addresses=False) == before
    assert torch.equal(family.run(pipe), plain)


@every
def test_saving_while_enabled(family: Family, tmp_path: Path) -> None:
    pipe, small = family.pipe(), family.make_small()
    plain = family.run(pipe)
    absent = {name: None for name, component in pipe.components.items() if component is None}
    with fb.enable(pipe, small, "LSL"):
        expected = family.run(pipe)
        pipe.save_pretrained(tmp_path)
        assert torch.equal(family.run(pipe), expected)
    loaded: Any = DiffusionPipeline.from_pretrained(tmp_path, **absent)
    assert type(loaded) is type(pipe)
    assert type(getattr(loaded, family.slot)) is type(small)
    loaded.set_progress_bar_config(disable=True)
    place(loaded)  # what was compared was built in torch's memory, and is not mapped from a file
    assert torch.equal(family.run(loaded), plain)
    # The small denoiser was saved beside the large one, so that the folder holds the pair.
    reloaded = place(type(small).from_pretrained(tmp_path, subfolder=f"{family.slot}_2"))
    with fb.enable(loaded, reloaded, "LSL"):
        assert torch.equal(family.run(loaded), expected)


def add_lora(denoiser: Any, seed: int = 7) -> None:
    """A LoRA of rank 2 on the attention of every block, with both of its matrices random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


@pytest.mark.parametrize("family", [FAMILIES["wan"], FAMILIES["ltx"], STABLE_DIFFUSION], ids=lambda f: f.name)
@pytest.mark.parametrize("on", ["L", "S", "LS"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lora_on_either_denoiser(family: Family, on: str, when: str) -> None:
    twin = family.pipe()
    denoisers = {"L": getattr(twin, family.slot), "S": family.make_small()}
    for letter in on:
        add_lora(denoisers[letter])
    expected = swapped(family, twin, denoisers, LSL)
    pipe, small = family.pipe(), family.make_small()
    own = {"L": getattr(pipe, family.slot), "S": small}
    if when == "before":
        for letter in on:
            add_lora(own[letter])
    with fb.enable(pipe, small, "LSL"):
        if when == "after":
            assert not torch.equal(family.run(pipe), expected)
            for letter in on:
                add_lora(own[letter])
        assert torch.equal(family.run(pipe), expected)
    setattr(twin, family.slot, denoisers["L"])
    assert torch.equal(family.run(pipe), family.run(twin))


def test_lora_weights_loaded_through_the_pipeline(tmp_path: Path) -> None:
    family = FAMILIES["wan"]
    source = family.pipe()
    add_lora(source.transformer)
    source.transformer.save_lora_adapter(tmp_path)
    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    state = {f"transformer.{name}": tensor for name, tensor in saved.items()}
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LLL"):
        pipe.load_lora_weights(state)
        assert torch.equal(family.run(pipe), family.run(source))
        pipe.unload_lora_weights()
        assert torch.equal(family.run(pipe), plain_latents(family))
