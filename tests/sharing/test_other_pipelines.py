"""Caches act in calls of their blend alone: other pipelines on the same denoisers notice nothing of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.callbacks import PipelineCallback

import flowblend_plugins as fb
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.pipelines import FAMILIES, VIDEO_TO_VIDEO
from tests.sharing.caches import Cache

SCHEDULE = "L:3,S:3,L:2"


def others_of(cache: Cache, pipe: Any, small: Any) -> list[Any]:
    """A pipeline that shares the large denoiser, and the small denoiser's own."""
    return [cache.sharing(getattr(pipe, cache.family.slot)), cache.sharing(small)]


def in_this_thread(function: Callable[[], Any]) -> None:
    function()


def in_another_thread(function: Callable[[], Any]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_other_pipelines_stay_plain_between_generations(cache: Cache) -> None:
    pipe, small = cache.family.pipe(), cache.family.make_small()
    others = others_of(cache, pipe, small)
    plain, plain_others = cache.run(pipe), [cache.run(other) for other in others]
    cache.run(pipe)
    before = snapshot(pipe, small)
    with fb.enable(pipe, small, SCHEDULE, adapters=[cache.spec]) as blend:
        blended = cache.run(pipe)
        assert {call.outcome for call in blend.trace.generations[-1].calls} != {"compute"}
        for other, expected in zip(others, plain_others, strict=True):
            assert torch.equal(cache.run(other), expected)
        assert torch.equal(cache.run(pipe), blended)
    assert torch.equal(cache.run(pipe), plain)
    assert snapshot(pipe, small) == before


@pytest.mark.parametrize("how", [in_this_thread, in_another_thread])
def test_other_pipelines_stay_plain_in_the_middle_of_a_generation_and_change_nothing_of_it(
    cache: Cache, how: Callable[[Callable[[], Any]], None]
) -> None:
    def call_others(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        how(lambda: inside.append([cache.run(other) for other in others]))
        return tensors

    inside: list[list[torch.Tensor]] = []
    pipe, small = cache.family.pipe(), cache.family.make_small()
    others = others_of(cache, pipe, small)
    plain_others = [cache.run(other) for other in others]
    with fb.enable(pipe, small, SCHEDULE, adapters=[cache.spec]) as blend:
        blended = cache.run(pipe)
        expected_outcomes = [call.outcome for call in blend.trace.generations[-1].calls]
        assert torch.equal(cache.run(pipe, callback_on_step_end=call_others), blended)
        assert [call.outcome for call in blend.trace.generations[-1].calls] == expected_outcomes
    assert len(inside) >= 8
    for results in inside:
        for result, expected in zip(results, plain_others, strict=True):
            assert torch.equal(result, expected)


class CallsOthers(PipelineCallback):
    """A callback of diffusers' own kind, which pipelines ask for its tensors."""

    tensor_inputs = ["latents"]  # noqa: RUF012 (diffusers reads it as an attribute)

    def __init__(self, others: list[Any], cache: Cache) -> None:
        super().__init__()
        self.others, self.cache = others, cache
        self.inside: list[list[torch.Tensor]] = []

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
        self.inside.append([self.cache.run(other) for other in self.others])
        return callback_kwargs


@pytest.mark.parametrize("cache", ["first_block_cache", "teacache"], indirect=True)
def test_a_callback_of_diffusers_own_kind_calls_denoisers_by_hand_too(cache: Cache) -> None:
    pipe, small = cache.family.pipe(), cache.family.make_small()
    callback = CallsOthers(others_of(cache, pipe, small), cache)
    plain_others = [cache.run(other) for other in callback.others]
    with fb.enable(pipe, small, SCHEDULE, adapters=[cache.spec]):
        blended = cache.run(pipe)
        assert torch.equal(cache.run(pipe, callback_on_step_end=callback), blended)
    assert len(callback.inside) == 8
    for results in callback.inside:
        assert all(map(torch.equal, results, plain_others))


@pytest.mark.parametrize("options", ["first_block_cache(threshold=10.0", "sea_cache(threshold=5.0", "taylorseer("])
def test_video_to_video_without_cache_contexts_runs_beside(options: str) -> None:
    wan = FAMILIES["wan"]
    pipe, other = wan.pipe(), VIDEO_TO_VIDEO.pipe()
    other.transformer = pipe.transformer
    plain_other = VIDEO_TO_VIDEO.run(other)
    separator = "" if options.endswith("(") else ", "
    with fb.enable(pipe, wan.make_small(), "LSL", adapters=[f"{options}{separator}denoisers='L')"]):
        wan.run(pipe)
        assert torch.equal(VIDEO_TO_VIDEO.run(other), plain_other)


def test_another_pipeline_on_the_large_denoiser_generates_at_the_same_time_in_another_thread(cache: Cache) -> None:
    """Each waits for the other between two of its steps, so that their calls interleave."""
    pipe, small = cache.family.pipe(), cache.family.make_small()
    other = cache.sharing(getattr(pipe, cache.family.slot))
    plain_other = cache.run(other)
    turns = threading.Barrier(2, timeout=60)
    results: list[torch.Tensor] = []

    def take_turns(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        turns.wait()
        return tensors

    with fb.enable(pipe, small, SCHEDULE, adapters=[cache.spec]):
        blended = cache.run(pipe)
        thread = threading.Thread(target=lambda: results.append(cache.run(other, callback_on_step_end=take_turns)))
        thread.start()
        assert torch.equal(cache.run(pipe, callback_on_step_end=take_turns), blended)
        thread.join()
    assert torch.equal(results[0], plain_other)
