"""Facts that diffusers' own pipelines tell in their source alone."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest

import flowblend_plugins as fb
from flowblend_plugins.pipelines.source import PipelineSource, opens_cache_contexts, read_source
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline


@pytest.mark.parametrize(
    ("name", "branches", "apart"),
    [
        ("WanPipeline", ("cond", "uncond"), True),
        ("LTXPipeline", ("cond_uncond",), False),
        ("LTX2Pipeline", ("cond_uncond", "uncond_stg", "uncond_modality"), False),
        ("WanVideoToVideoPipeline", (), None),
    ],
)
def test_guidance_branches_in_the_order_in_which_they_are_called(
    name: str, branches: tuple[str, ...], apart: bool | None
) -> None:
    source = read_source(object.__new__(getattr(diffusers, name)))
    assert (source.branches, source.branches_called_apart) == (branches, apart)


@pytest.mark.parametrize(("name", "first"), [("LTXPipeline", True), ("WanPipeline", False), ("PRXPipeline", True)])
def test_which_half_of_a_batch_is_unconditional(name: str, first: bool) -> None:
    assert read_source(object.__new__(getattr(diffusers, name))).batches_uncond_first is first


def test_keywords_handed_to_the_sampler_and_to_the_denoiser() -> None:
    source = read_source(object.__new__(diffusers.LTXConditionPipeline))
    assert source.step_keywords == {"per_token_timesteps", "return_dict"}
    assert {"encoder_hidden_states", "video_coords", "per_token_timesteps"} <= source.call_keywords


def test_context_names_that_are_computed_are_unknown_but_contexts_are_opened() -> None:
    pipeline_class = diffusers.HunyuanVideo15Pipeline
    assert read_source(object.__new__(pipeline_class)).branches == ()
    assert opens_cache_contexts(pipeline_class)


def test_an_enabled_pipeline_is_read_like_the_plain_one_and_a_foreign_object_tells_nothing() -> None:
    pipe = tiny_wan_pipeline()
    plain = read_source(pipe)
    with fb.enable(pipe, tiny_wan_denoiser()):
        assert read_source(pipe) is plain
    assert read_source(SimpleNamespace) == PipelineSource()
