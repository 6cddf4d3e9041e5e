"""One large denoiser in two pipelines, two blends on one pipeline, calls from elsewhere: right or refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline, WanPipeline

import flowblend_plugins as fb
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.pipelines import FAMILIES, STABLE_DIFFUSION, skyreels

WAN = FAMILIES["wan"]


def sharing(pipe: Any, scheduler: str = "euler") -> Any:
    """Another pipeline on the same denoiser, with a scheduler of its own."""
    other = WAN.pipe(scheduler)
    other.transformer = pipe.transformer
    return other


def test_a_pipeline_that_shares_the_large_denoiser_stays_plain() -> None:
    pipe = WAN.pipe("unipc")
    other = sharing(pipe)
    plain, plain_other = WAN.run(pipe), WAN.run(other)
    with fb.enable(pipe, WAN.make_small(), "LSL") as blend:
        blended = WAN.run(pipe)
        assert torch.equal(WAN.run(other), plain_other)
        assert torch.equal(WAN.run(pipe), blended)
        assert len(blend.trace.generations) == 2
    assert torch.equal(WAN.run(other), plain_other)
    assert torch.equal(WAN.run(pipe), plain)


def test_it_stays_plain_when_called_in_a_callback_of_a_small_step() -> None:
    def call_other(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        inside.append(WAN.run(other))
        return tensors

    inside: list[torch.Tensor] = []
    pipe = WAN.pipe("unipc")
    other = sharing(pipe)
    plain_other = WAN.run(other)
    with fb.enable(pipe, WAN.make_small(), "SSS"):
        blended = WAN.run(pipe)
        assert torch.equal(WAN.run(pipe, callback_on_step_end=call_other), blended)
    assert len(inside) == 6
    assert all(torch.equal(result, plain_other) for result in inside)


def test_it_stays_plain_in_another_thread_during_a_generation() -> None:
    def call_other(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        thread = threading.Thread(target=lambda: inside.append(WAN.run(other)))
        thread.start()
        thread.join()
        return tensors

    inside: list[torch.Tensor] = []
    pipe = WAN.pipe("unipc")
    other = sharing(pipe)
    plain_other = WAN.run(other)
    with fb.enable(pipe, WAN.make_small(), "SSS"):
        WAN.run(pipe, callback_on_step_end=call_other)
    assert all(torch.equal(result, plain_other) for result in inside)


def test_the_small_denoiser_may_be_the_large_one_of_a_third_pipeline() -> None:
    pipe, third = WAN.pipe(), WAN.pipe()
    small = third.transformer = WAN.make_small()
    plain_third = WAN.run(third)
    with fb.enable(pipe, small, "LSL"):
        blended = WAN.run(pipe)
        with fb.enable(third, WAN.make_small(), "LSL"):
            assert torch.equal(WAN.run(pipe), blended)
        assert torch.equal(WAN.run(third), plain_third)
    assert torch.equal(WAN.run(third), plain_third)


def test_enabling_on_the_second_of_two_sharing_pipelines_is_refused() -> None:
    pipe = WAN.pipe()
    other = sharing(pipe)
    with fb.enable(pipe, WAN.make_small()):
        before = snapshot(other)
        with pytest.raises(fb.RoutingError, match=r"shared with another pipeline.*Disable it there first"):
            fb.enable(other, WAN.make_small())
        with pytest.raises(fb.PairError, match="large denoiser of another pipeline"):
            fb.enable(WAN.pipe(), pipe.transformer)
        assert snapshot(other) == before
    with fb.enable(other, WAN.make_small(), "LLL"):
        assert WAN.run(other).isfinite().all()


def test_enabling_twice_is_a_clear_error_and_changes_nothing() -> None:
    pipe, small = WAN.pipe(), WAN.make_small()
    with fb.enable(pipe, small) as blend:
        blended, enabled = WAN.run(pipe), snapshot(pipe, small)
        with pytest.raises(fb.RoutingError, match=r"already enabled on this WanPipeline. Call disable\(\)"):
            fb.enable(pipe, WAN.make_small())
        assert snapshot(pipe, small) == enabled
        assert torch.equal(WAN.run(pipe), blended)
        assert blend.is_enabled


def test_one_pipeline_does_not_generate_twice_at_once() -> None:
    def call_again(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        with pytest.raises(fb.RoutingError, match="already generating"):
            WAN.run(pipe)
        return tensors

    pipe = WAN.pipe()
    with fb.enable(pipe, WAN.make_small()):
        blended = WAN.run(pipe)
        assert torch.equal(WAN.run(pipe, callback_on_step_end=call_again), blended)


def test_a_denoiser_replaced_meanwhile_is_refused() -> None:
    pipe = WAN.pipe()
    large = pipe.transformer
    with fb.enable(pipe, WAN.make_small()):
        blended = WAN.run(pipe)
        pipe.transformer = WAN.make_small()
        with pytest.raises(fb.RoutingError, match="was replaced after enable"):
            WAN.run(pipe)
        pipe.transformer = large
        assert torch.equal(WAN.run(pipe), blended)


@pytest.mark.parametrize("family", [*FAMILIES.values(), STABLE_DIFFUSION], ids=lambda family: family.name)
def test_two_blends_on_two_pipelines_may_share_the_small_denoiser(family: Any) -> None:
    first, second, small = family.pipe(), family.pipe(), family.make_small()
    with fb.enable(first, small, "LSL"), fb.enable(second, small, "SSL"):
        expected_first, expected_second = family.run(first), family.run(second)
        assert torch.equal(family.run(first), expected_first)
        assert not torch.equal(expected_first, expected_second)
    with fb.enable(second, family.make_small(), "SSL"):
        assert torch.equal(family.run(second), expected_second)


def test_diffusion_forcing_is_refused() -> None:
    pipe = skyreels(SkyReelsV2DiffusionForcingPipeline)
    before = snapshot(pipe)
    with pytest.raises(fb.RoutingError, match=r"copies of its scheduler.*SkyReelsV2Pipeline"):
        fb.enable(pipe, WAN.make_small())
    assert snapshot(pipe) == before


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(fb.RoutingError, match="expected a diffusers pipeline, found WanTransformer3DModel"):
        fb.enable(WAN.make_small(), WAN.make_small())
    empty = WAN.pipe()
    without = WanPipeline(**{**empty.components, "transformer": None})
    with pytest.raises(fb.RoutingError, match="has no denoiser"):
        fb.enable(without, WAN.make_small())
