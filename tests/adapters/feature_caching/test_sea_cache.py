"""SeaCache under FlowBlending against diffusers' own on a plain pipeline; on LTX with its context filled in by hand."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LTXPipeline, SeaCacheConfig

import flowblend_plugins as fb
from flowblend_adapters.feature_caching.diffusers.sea_cache import video_latents
from flowblend_plugins.testing import generate, tiny_ltx_pipeline, tiny_wan_pipeline
from tests.adapters.feature_caching.native_cache_contract import NativeCacheContract, OnLTX, OnWan, small_wan
from tests.exactness.pipelines import FAMILIES


class SeaCacheContract(NativeCacheContract):
    spec = "sea_cache(threshold=1.0)"
    never_spec = "sea_cache(threshold=0.0)"
    wrong_specs = (
        "sea_cache(threshold=-0.1)",
        "sea_cache(residual_order=2)",
        "sea_cache(cooldown_steps=-1)",
        "sea_cache(max_skip_steps=-1)",
        "sea_cache(power_exp=0.0)",
        "sea_cache(retention=1)",
    )
    skipped_outcome = "reuse"

    def config(self) -> Any:
        return SeaCacheConfig(threshold=1.0)


class TestSeaCacheOnWan(OnWan, SeaCacheContract):
    pass


class TestSeaCacheOnWanWithoutExtrapolation(OnWan, SeaCacheContract):
    spec = "sea_cache(threshold=1.0, residual_order=0, max_skip_steps=0, cooldown_steps=2)"

    def config(self) -> Any:
        return SeaCacheConfig(threshold=1.0, residual_order=0, max_consecutive_cached=0, cache_end_steps=2)


def unpacked(denoiser: Any, args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """diffusers' own way back from tokens."""
    extents = (kwargs["num_frames"], kwargs["height"], kwargs["width"])
    return list(LTXPipeline._unpack_latents(kwargs["hidden_states"], *extents, 1, 1).unbind(0))


def fill_context_in(pipe: Any) -> None:
    """What LTX leaves out of its cache contexts, from the sampler."""
    plain = pipe.transformer.cache_context

    @contextlib.contextmanager
    def filled(name: str) -> Any:
        scheduler = pipe.scheduler
        index = scheduler.step_index or 0  # the sampler has none before its first step
        position = {"step_index": index, "sigma": float(scheduler.sigmas[index])}
        with plain(name, num_inference_steps=len(scheduler.timesteps), **position):
            yield

    pipe.transformer.cache_context = filled


class TestSeaCacheOnLTX(OnLTX, SeaCacheContract):
    def config(self) -> Any:
        return SeaCacheConfig(threshold=1.0, raw_vision_callback=unpacked)

    def put_on_by_hand(self, pipe: Any) -> None:
        super().put_on_by_hand(pipe)
        fill_context_in(pipe)


def test_what_extends_a_line_is_told_from_what_repeats_the_last_residual() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, schedule="LLL", adapters=["sea_cache(threshold=1e6, max_skip_steps=1)"]) as blend:
        generate(pipe, 7, guidance_scale=1.0)
        assert blend.trace.last is not None
        outcomes = [call.outcome for call in blend.trace.last.calls]
    # One residual is known at step 1, two from step 3 on; the last step is computed.
    assert outcomes == ["compute", "reuse", "compute", "predict", "compute", "predict", "compute"]


def test_the_gap_of_the_small_stage_is_noticed_under_reentry_keep_too() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, small_wan(), "L:4,S:2,L:4", adapters=["sea_cache(threshold=1e6)"], reentry="keep") as blend:
        generate(pipe, 10)
        assert blend.trace.last is not None
        assert {c.outcome for c in blend.trace.last.calls if c.step.step_index == 6} == {"compute"}


def test_offloading_that_is_put_on_meanwhile_changes_nothing() -> None:
    pipe = tiny_wan_pipeline()
    plain = generate(pipe)
    with fb.enable(pipe, small_wan(), "LSL", adapters=["sea_cache(threshold=1.0)"]):
        expected = generate(pipe)
    blend = fb.enable(pipe, small_wan(), "LSL", adapters=["sea_cache(threshold=1.0)"])
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(3):
        assert torch.equal(generate(pipe), expected)
    blend.disable()
    assert torch.equal(generate(pipe), plain)


def test_image_to_video_compares_the_video_without_its_condition() -> None:
    family = FAMILIES["wan-i2v"]
    pipe = family.pipe()
    seen: list[tuple[int, ...]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        (latents,) = video_latents(module, args, kwargs) or [kwargs["hidden_states"]]
        seen.append(tuple(latents.shape))
        assert torch.equal(latents, kwargs["hidden_states"][0, :4])

    pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    with fb.enable(pipe, schedule="LLL", adapters=["sea_cache(threshold=1e6)"]) as blend:
        family.run(pipe)
        assert blend.trace.last is not None
        assert blend.trace.last.num_forwards("L", "compute") < len(blend.trace.last.calls) == len(seen)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FAMILIES["ltx-condition"].pipe(), "does not tell the denoiser the size of the video"),
        (lambda: FAMILIES["mochi"].pipe(), "runs on LTXVideoTransformer3DModel or WanTransformer3DModel"),
        (lambda: _sampled_by_variance(), "needs a flow-matching sampler"),
    ],
)
def test_a_pipeline_on_which_it_would_never_reuse_is_refused(make: Any, told: str) -> None:
    with pytest.raises(fb.StackError, match=told):
        fb.enable(make(), schedule="LLL", adapters=["sea_cache"])


def _sampled_by_variance() -> Any:
    pipe = tiny_ltx_pipeline()
    pipe.scheduler = DPMSolverMultistepScheduler()
    return pipe
