"""Other pipeline classes on the components of an enabled pipeline, and what is saved of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    LTXConditionPipeline,
    LTXPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    WanImageToVideoPipeline,
    WanPipeline,
    WanVideoToVideoPipeline,
)
from torch import nn

import flowblend_plugins as fb
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.pipelines import FAMILIES, STABLE_DIFFUSION, VIDEO_TO_VIDEO, Family
from tests.exactness.test_placement import offload_models

HERE = {family.name: family for family in (FAMILIES["wan"], FAMILIES["ltx"], STABLE_DIFFUSION)}
every = pytest.mark.parametrize("family", HERE.values(), ids=HERE)
OTHERS = {
    "wan": (WanPipeline, WanVideoToVideoPipeline),
    "ltx": (LTXPipeline, LTXConditionPipeline),
    "stable-diffusion": (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline),
}


def made_by_components(cls: Any, pipe: Any) -> Any:
    return cls(**pipe.components)


def made_by_from_pipe(cls: Any, pipe: Any) -> Any:
    return cls.from_pipe(pipe)


@every
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("make", [made_by_components, made_by_from_pipe])
def test_other_classes_are_made_as_from_the_plain_pipeline(family: Family, number: int, make: Any) -> None:
    cls = OTHERS[family.name][number]
    if cls is WanVideoToVideoPipeline and make is made_by_components:
        pytest.skip("not of a plain WanPipeline either: it has a transformer_2, if an empty one")
    pipe, small = family.pipe(), family.make_small()
    family.run(pipe)
    expected, before = make(cls, family.pipe()), snapshot(pipe, small)
    with fb.enable(pipe, small, "LSL"):
        blended = family.run(pipe)
        other = make(cls, pipe)
        assert getattr(other, family.slot) is getattr(pipe, family.slot)
        assert other.components.keys() == expected.components.keys()
        assert not any(component is small for component in other.components.values())
        assert dict(other.config) == dict(expected.config)
        other.set_progress_bar_config(disable=True)
        if number == 0:
            assert torch.equal(family.run(other), family.run(family.pipe()))
        assert torch.equal(family.run(pipe), blended)
    assert snapshot(pipe, small) == before


def test_video_to_video_from_an_enabled_pipeline_generates_as_from_a_plain_one() -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe("unipc")
    expected = VIDEO_TO_VIDEO.run(WanVideoToVideoPipeline.from_pipe(family.pipe("unipc")))
    with fb.enable(pipe, family.make_small(), "SSS", adapters=["first_block_cache(denoisers='L')"]):
        other = WanVideoToVideoPipeline.from_pipe(pipe)
        assert torch.equal(VIDEO_TO_VIDEO.run(other), expected)
    assert torch.equal(VIDEO_TO_VIDEO.run(other), expected)


def test_the_auto_pipeline_takes_an_enabled_one() -> None:
    pipe = STABLE_DIFFUSION.pipe()
    with fb.enable(pipe, STABLE_DIFFUSION.make_small()):
        other: Any = AutoPipelineForImage2Image.from_pipe(pipe)
    assert type(other) is StableDiffusionImg2ImgPipeline
    assert other.unet is pipe.unet


def test_image_to_video_from_components() -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small()):
        other = WanImageToVideoPipeline(image_encoder=None, image_processor=None, **pipe.components)
    assert other.transformer_2 is None


@every
def test_the_components_are_those_of_the_plain_pipeline(family: Family) -> None:
    pipe, plain = family.pipe(), family.pipe()
    with fb.enable(pipe, family.make_small()):
        assert pipe.components.keys() == plain.components.keys()
        assert {k: v is None for k, v in pipe.components.items()} == {k: v is None for k, v in plain.components.items()}
        assert dict(pipe.config) == dict(plain.config)


@every
def test_a_pipeline_saved_while_enabled_lists_no_component_of_ours(family: Family, tmp_path: Path) -> None:
    pipe, small = family.pipe(), family.make_small()
    family.pipe().save_pretrained(tmp_path / "plain")
    with fb.enable(pipe, small):
        pipe.save_pretrained(tmp_path / "enabled")
    plain, enabled = (json.loads((tmp_path / name / "model_index.json").read_text()) for name in ("plain", "enabled"))
    assert enabled == plain
    reloaded = type(small).from_pretrained(tmp_path / "enabled" / f"{family.slot}_2")
    assert all(map(torch.equal, reloaded.state_dict().values(), small.state_dict().values()))


@every
def test_what_goes_over_all_components_reaches_the_small_denoiser(family: Family) -> None:
    pipe, small = family.pipe(), family.make_small()
    with fb.enable(pipe, small):
        pipe.to(torch.float64)
        assert small.dtype == torch.float64
        pipe.to(torch.float32)
        offload_models(pipe)
        assert hasattr(small, "_hf_hook")
        assert family.run(pipe).isfinite().all()
        pipe.remove_all_hooks()
        assert not hasattr(small, "_hf_hook")


def test_classes_of_denoisers_compare_as_their_own() -> None:
    """Libraries keep tables of classes, as ``from_pipe`` does."""
    pipe = FAMILIES["wan"].pipe()
    plain: type[nn.Module] = type(pipe.transformer)
    with fb.enable(pipe, FAMILIES["wan"].make_small()):
        routed = type(pipe.transformer)
        assert routed is not plain
        assert routed == plain
        assert plain == routed
        assert routed in {plain}
        assert routed not in {type(FAMILIES["ltx"].pipe().transformer)}
