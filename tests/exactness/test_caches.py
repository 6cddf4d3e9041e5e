"""diffusers' caches that the user enabled before ``enable()``: alone under LLL, fresh at every switch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from torch import nn

import flowblend_plugins as fb
from tests.exactness.pipelines import FAMILIES, Family, plain_latents
from tests.exactness.test_undo import Stumble, stumble_at_call

CACHES: dict[str, Callable[[], Any]] = {
    "first block": lambda: FirstBlockCacheConfig(threshold=1e6),  # reuses whatever it has
    "magnitude": lambda: MagCacheConfig(
        threshold=1e6, max_skip_steps=5, retention_ratio=0.1, num_inference_steps=6, mag_ratios=torch.ones(6)
    ),
    "taylor": lambda: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, cache_identifiers=[r".*blocks\.\d+\.attn[12]"]
    ),
}
CACHEABLE = [FAMILIES["wan"], FAMILIES["wan-i2v"], FAMILIES["ltx"]]
everywhere = pytest.mark.parametrize("family", CACHEABLE, ids=lambda family: family.name)
every_cache = pytest.mark.parametrize("cache", CACHES)


def cached_pipe(family: Family, cache: str) -> Any:
    pipe = family.pipe()
    pipe.transformer.enable_cache(CACHES[cache]())
    return pipe


@contextmanager
def recorded(denoiser: nn.Module) -> Iterator[list[tuple[dict[str, Any], torch.Tensor]]]:
    """Keyword arguments and outputs of all calls of the denoiser."""
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    def record(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append((kwargs, output[0].clone()))

    handle = denoiser.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@everywhere
@every_cache
def test_lll_is_the_cache_alone(family: Family, cache: str) -> None:
    pipe = cached_pipe(family, cache)
    alone = family.run(pipe)
    assert not torch.equal(alone, plain_latents(family))
    with fb.enable(pipe, family.make_small(), "LLL"):
        assert torch.equal(family.run(pipe), alone)
        assert torch.equal(family.run(pipe), alone)
    assert torch.equal(family.run(pipe), alone)


@pytest.mark.parametrize("guided", [(0, 3, 4, 5), (2, 3, 4, 5)], ids=["guidance pauses", "guidance comes later"])
def test_lll_is_the_cache_alone_where_a_branch_is_not_always_there(guided: tuple[int, ...]) -> None:
    def guide(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 5.0 if step + 1 in guided else 1.0
        return tensors

    family = FAMILIES["wan"]
    pipe = cached_pipe(family, "first block")
    call: dict[str, Any] = {"guidance_scale": 5.0 if 0 in guided else 1.0, "callback_on_step_end": guide}
    alone = family.run(pipe, **call)
    with fb.enable(pipe, family.make_small(), "LLL") as blend:
        assert torch.equal(family.run(pipe, **call), alone)
        assert blend.trace.last is not None
        assert {c.step.step_index for c in blend.trace.last.calls if c.step.branch == "uncond"} == set(guided)


@everywhere
@every_cache
@pytest.mark.parametrize("reentry", ["recompute", "keep"])
def test_the_first_large_step_after_the_small_stage(family: Family, cache: str, reentry: str) -> None:
    pipe, uncached = cached_pipe(family, cache), family.pipe().transformer
    with fb.enable(pipe, family.make_small(), "L:3,S:1,L:2", reentry=reentry), recorded(pipe.transformer) as calls:
        blended = family.run(pipe)
        per_step = len(calls) // 5  # one call of each guidance branch, or one of both together
        after = calls[3 * per_step : 4 * per_step]
        with torch.no_grad():
            is_fresh = [torch.equal(output, uncached(**kwargs)[0]) for kwargs, output in after]
        assert is_fresh == [reentry == "recompute"] * per_step
        assert torch.equal(family.run(pipe), blended)


@everywhere
@every_cache
def test_reentry_is_a_choice_that_matters(family: Family, cache: str) -> None:
    results = {}
    for reentry in ("recompute", "keep"):
        pipe = cached_pipe(family, cache)
        with fb.enable(pipe, family.make_small(), "L:3,S:1,L:2", reentry=reentry):
            results[reentry] = family.run(pipe)
    assert not torch.equal(results["recompute"], results["keep"])


@everywhere
@every_cache
@pytest.mark.parametrize("raising", ["L", "S"])
def test_an_exception_leaves_no_stale_state(family: Family, cache: str, raising: str) -> None:
    pipe = cached_pipe(family, cache)
    alone = family.run(pipe)
    with fb.enable(pipe, family.make_small(), "LSL") as blend:
        blended = family.run(pipe)
        for _ in range(2):
            handle = stumble_at_call(blend.denoisers[raising], 2)
            with pytest.raises(Stumble):
                family.run(pipe)
            handle.remove()
            assert torch.equal(family.run(pipe), blended)
        handle = stumble_at_call(blend.denoisers[raising], 2)
        with pytest.raises(Stumble):
            family.run(pipe)
        handle.remove()
    assert torch.equal(family.run(pipe), alone)


def test_a_cache_on_the_small_denoiser_is_fresh_in_every_stage_of_its_own() -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    small, uncached = family.make_pipe().transformer, family.make_pipe().transformer
    small.enable_cache(CACHES["first block"]())
    with fb.enable(pipe, small, "S:2,L:2,S:2"), recorded(small) as calls, torch.no_grad():
        blended = family.run(pipe)
        fresh = [torch.equal(output, uncached(**kwargs)[0]) for kwargs, output in calls]
        assert fresh == [True, True, False, False] * 2
        assert torch.equal(family.run(pipe), blended)


def test_a_cache_enabled_while_enabled_stays_the_users() -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    alone = family.run(cached_pipe(family, "first block"))
    with fb.enable(pipe, family.make_small(), "LLL"):
        pipe.transformer.enable_cache(CACHES["first block"]())
        assert torch.equal(family.run(pipe), alone)
    assert torch.equal(family.run(pipe), alone)
    pipe.transformer.disable_cache()
    assert torch.equal(family.run(pipe), plain_latents(family))
