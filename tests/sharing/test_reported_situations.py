"""Situations that users of caches, LoRAs, samplers, offloading and servers have reported, in a blend."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback

import flowblend_plugins as fb
from flowblend_adapters.step_reduction.dpmpp_single import DPMppSingle
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.pipelines import FAMILIES, SCHEDULERS, STABLE_DIFFUSION, VIDEO_TO_VIDEO, Family, text
from tests.exactness.test_many_denoisers import two_experts
from tests.exactness.test_placement import add_lora, offload_models
from tests.sharing.caches import LTX, WAN

FIRST_BLOCK = "first_block_cache(threshold=10.0)"
TEACACHE = "teacache(threshold=0.65)"
SCHEDULE = "L:3,S:3,L:2"


class Cancelled(Exception):
    """Raised by a user's callback."""


def cancelling(at: int) -> Any:
    def cancel(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            raise Cancelled
        return tensors

    return cancel


def fresh(
    family: Family, steps: int, *adapters: str, schedule: str = "LSL", lora: str = "", **call: Any
) -> torch.Tensor:
    """What objects that nothing has happened to give."""
    pipe, small = family.pipe(), family.make_small()
    for letter in lora:
        add_lora({"L": getattr(pipe, family.slot), "S": small}[letter])
    with fb.enable(pipe, small, schedule, adapters=adapters):
        return family.run(pipe, steps, **call)


def test_pipelines_on_one_unet_with_samplers_of_their_own_in_two_threads_with_deepcache_on_one() -> None:
    family = STABLE_DIFFUSION
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LSL", adapters=["deepcache(interval=2)"]):
        other = StableDiffusionPipeline(
            **{**pipe.components, "scheduler": SCHEDULERS["euler-epsilon"]()}, requires_safety_checker=False
        )
        other.set_progress_bar_config(disable=True)
        expected, expected_other = family.run(pipe), family.run(family.pipe("euler-epsilon"))
        results: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: results.append(family.run(other)))
        thread.start()
        assert torch.equal(family.run(pipe), expected)
        thread.join()
    assert torch.equal(results[0], expected_other)


def test_loras_on_both_experts_and_the_small_denoiser_under_model_offloading() -> None:
    def run(offload: bool) -> list[torch.Tensor]:
        pipe, small = two_experts(), FAMILIES["wan"].make_small()
        for seed, denoiser in enumerate((pipe.transformer, pipe.transformer_2, small)):
            add_lora(denoiser, seed)
        if offload:
            offload_models(pipe)
        with fb.enable(pipe, small, "L:2,S:2,M:2", denoisers={"M": pipe.transformer_2}):
            return [FAMILIES["wan"].run(pipe) for _ in range(3)]

    expected, offloaded = run(False), run(True)
    assert all(torch.equal(expected[0], result) for result in (*expected, *offloaded))


@pytest.mark.parametrize("strength", [0.3, 0.6, 0.9])
def test_a_singlestep_sampler_where_a_strength_cuts_the_first_steps_off(strength: float) -> None:
    family = VIDEO_TO_VIDEO
    plain, pipe = family.pipe(), family.pipe()
    plain.scheduler = DPMppSingle().build(plain.scheduler)
    expected = family.run(plain, 10, strength=strength)
    with fb.enable(pipe, family.make_small(), "LLL", adapters=["dpmpp_single"]):
        assert torch.equal(family.run(pipe, 10, strength=strength), expected)
    with fb.enable(pipe, family.make_small(), "LSL", adapters=["dpmpp_single"]):
        blended = family.run(pipe, 10, strength=strength)
        assert torch.equal(family.run(pipe, 10, strength=strength), blended)


def test_two_requests_to_one_pipeline_at_once() -> None:
    family = FAMILIES["wan"]
    pipe, lock = family.pipe(), threading.Lock()
    refused: list[str] = []

    def second_request(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        def request() -> None:
            try:
                family.run(pipe, seed=1)
            except fb.RoutingError as error:
                refused.append(str(error))

        thread = threading.Thread(target=request)
        thread.start()
        thread.join()
        return tensors

    with fb.enable(pipe, family.make_small(), "LSL", adapters=["first_block_cache(denoisers='L')"]):
        expected = [family.run(pipe, seed=seed) for seed in (0, 1)]
        assert torch.equal(family.run(pipe, callback_on_step_end=second_request), expected[0])
        assert len(refused) == 6
        assert all("already generating" in error for error in refused)
        results: dict[int, torch.Tensor] = {}

        def with_lock(seed: int) -> None:
            with lock:
                results[seed] = family.run(pipe, seed=seed)

        threads = [threading.Thread(target=with_lock, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(results[seed], expected[seed]) for seed in (0, 1))


@pytest.mark.parametrize("spec", [TEACACHE, "cache_dit(threshold=0.5)"])
def test_the_number_of_steps_changes_from_one_generation_to_the_next(spec: str) -> None:
    pipe = WAN.pipe()
    with fb.enable(pipe, WAN.make_small(), "LSL", adapters=[spec]):
        for steps in (10, 6, 12, 6):
            assert torch.equal(WAN.run(pipe, steps), fresh(WAN, steps, spec))


@pytest.mark.parametrize("spec", [TEACACHE, "cache_dit(threshold=0.5, denoisers='L')"])
def test_a_second_pass_of_another_size_and_strength_with_one_cache(spec: str) -> None:
    family = VIDEO_TO_VIDEO
    pipe = family.pipe()
    passes: tuple[dict[str, Any], ...] = ({}, {"height": 64, "width": 64, "strength": 0.9}, {"strength": 0.9}, {})
    with fb.enable(pipe, family.make_small(), "LSL", adapters=[spec]):
        for call in passes:
            assert torch.equal(family.run(pipe, 10, **call), fresh(family, 10, spec, **call))


@pytest.mark.parametrize("spec", ["deepcache(interval=3)", "deepcache(interval=1)"])
def test_guidance_ends_in_the_middle_so_that_half_of_the_batch_is_gone(spec: str) -> None:
    def cutoff() -> Any:
        return SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)

    family = STABLE_DIFFUSION
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LLL", adapters=[spec]):
        first = family.run(pipe, callback_on_step_end=cutoff())
        assert torch.equal(family.run(pipe, callback_on_step_end=cutoff()), first)
    if "interval=1" in spec:
        assert torch.equal(first, family.run(family.pipe(), callback_on_step_end=cutoff()))


def test_each_video_of_a_batch_is_cached_for_itself() -> None:
    pipe = WAN.pipe()
    texts = text(2, 16)
    noise = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    with fb.enable(pipe, WAN.make_small(), SCHEDULE, adapters=[FIRST_BLOCK]) as blend:
        together = WAN.run(pipe, 8, batch=2, latents=noise, **texts).reshape(2, -1)
        assert blend.trace.generations[-1].num_forwards("L", "reuse") > 0
        for number in (0, 1):
            own = {name: value[number : number + 1] for name, value in texts.items()}
            alone = WAN.run(pipe, 8, latents=noise[number : number + 1], **own)
            torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-4)


def test_a_cache_on_two_experts_and_a_small_denoiser_starts_again_with_another_prompt() -> None:
    def enabled(pipe: Any) -> fb.Blend:
        spec = "first_block_cache(threshold=0.3, denoisers='LM')"
        small = FAMILIES["wan"].make_small()
        return fb.enable(pipe, small, "L:4,S:2,M:4", denoisers={"M": pipe.transformer_2}, adapters=[spec])

    other = {"prompt_embeds": torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(9))}
    pipe, unused = two_experts(), two_experts()
    with enabled(pipe) as blend, enabled(unused) as expected:
        FAMILIES["wan"].run(pipe, 10)
        assert torch.equal(FAMILIES["wan"].run(pipe, 10, **other), FAMILIES["wan"].run(unused, 10, **other))
        seen = [[call.outcome for call in one.trace.generations[-1].calls] for one in (blend, expected)]
        assert seen[0] == seen[1]
        assert "reuse" in seen[0]


@pytest.mark.parametrize("spec", [TEACACHE, "cache_dit(threshold=0.5)", FIRST_BLOCK])
def test_a_warm_up_without_a_number_of_steps_before_the_first_request(spec: str) -> None:
    pipe = WAN.pipe()
    with fb.enable(pipe, WAN.make_small(), "LSL", adapters=[spec]), torch.no_grad():
        pipe(**text(1, 16), height=16, width=16, num_frames=5, output_type="latent")
        assert torch.equal(WAN.run(pipe, 8), fresh(WAN, 8, spec))


def test_a_cache_on_image_to_video_gives_back_as_many_channels_as_the_denoiser_has_out() -> None:
    family = FAMILIES["wan-i2v"]
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LSL", adapters=[TEACACHE]) as blend:
        result = family.run(pipe, 10)
        assert {call.outcome for call in blend.trace.generations[-1].calls} == {"compute", "reuse"}
    assert result.shape == family.run(pipe, 10).shape


@pytest.mark.parametrize("scheduler", ["heun-epsilon", "pndm", "euler-epsilon"])
def test_deepcache_with_samplers_that_call_twice_a_step(scheduler: str) -> None:
    family = STABLE_DIFFUSION
    plain, pipe = family.run(family.pipe(scheduler)), family.pipe(scheduler)
    with fb.enable(pipe, family.make_small(), "LLL", adapters=["deepcache(interval=1)"]):
        assert torch.equal(family.run(pipe), plain)
    with fb.enable(pipe, family.make_small(), "LSL", adapters=["deepcache(interval=2)"]) as blend:
        first = family.run(pipe)
        assert torch.equal(family.run(pipe), first)
        assert "reuse" in {call.outcome for call in blend.trace.generations[-1].calls}


@pytest.mark.parametrize("family", [WAN, LTX], ids=["wan", "ltx"])
def test_compiled_blocks_under_first_block_cache(family: Family) -> None:
    expected = fresh(family, 6, FIRST_BLOCK)
    torch.compiler.reset()
    pipe, small = family.pipe(), family.make_small()
    for denoiser in (pipe.transformer, small):
        denoiser.compile_repeated_blocks(backend="eager", dynamic=False)
    with fb.enable(pipe, small, "LSL", adapters=[FIRST_BLOCK]):
        assert torch.equal(family.run(pipe), expected)
        assert torch.equal(family.run(pipe), expected)
    torch.compiler.reset()


def test_a_stop_button_in_another_thread_with_a_cache_on() -> None:
    pipe, stop = WAN.pipe(), threading.Event()

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            button = threading.Thread(target=stop.set)
            button.start()
            button.join()
        pipe._interrupt = stop.is_set()
        return tensors

    with fb.enable(pipe, WAN.make_small(), SCHEDULE, adapters=["cache_dit(threshold=0.5)"]) as blend:
        expected = WAN.run(pipe, 8)
        WAN.run(pipe, 8, callback_on_step_end=look)
        assert {call.step.step_index for call in blend.trace.generations[-1].calls} == {0, 1, 2, 3}
        assert torch.equal(WAN.run(pipe, 8), expected)


@pytest.mark.parametrize("at", [1, 4, 6])
@pytest.mark.parametrize("spec", [FIRST_BLOCK, TEACACHE])
def test_runs_cancelled_by_an_exception_do_not_spoil_the_cache_for_the_next(spec: str, at: int) -> None:
    pipe = WAN.pipe()
    with fb.enable(pipe, WAN.make_small(), SCHEDULE, adapters=[spec]):
        expected = WAN.run(pipe, 8)
        for _ in range(3):
            with pytest.raises(Cancelled):
                WAN.run(pipe, 8, callback_on_step_end=cancelling(at))
        assert torch.equal(WAN.run(pipe, 8), expected)


def test_offloading_a_lora_and_a_cache_over_many_generations_some_of_them_cancelled() -> None:
    expected = fresh(WAN, 8, TEACACHE, lora="LS")
    pipe, small = WAN.pipe(), WAN.make_small()
    for denoiser in (pipe.transformer, small):
        add_lora(denoiser)
    offload_models(pipe)
    with fb.enable(pipe, small, "LSL", adapters=[TEACACHE]):
        for number in range(6):
            if number % 2:
                with contextlib.suppress(Cancelled):
                    WAN.run(pipe, 8, callback_on_step_end=cancelling(number))
            assert torch.equal(WAN.run(pipe, 8), expected)


def test_a_lora_that_is_switched_off_is_gone_from_the_next_generation_with_a_cache_on() -> None:
    with_lora, without = fresh(WAN, 8, FIRST_BLOCK, lora="L"), fresh(WAN, 8, FIRST_BLOCK)
    pipe = WAN.pipe()
    add_lora(pipe.transformer)
    with fb.enable(pipe, WAN.make_small(), "LSL", adapters=[FIRST_BLOCK]):
        assert torch.equal(WAN.run(pipe, 8), with_lora)
        pipe.transformer.disable_adapters()
        assert torch.equal(WAN.run(pipe, 8), without)
        pipe.transformer.enable_adapters()
        assert torch.equal(WAN.run(pipe, 8), with_lora)


def test_a_lora_that_is_unloaded_is_gone_and_disable_leaves_the_plain_pipeline() -> None:
    pipe, small = WAN.pipe(), WAN.make_small()
    plain, blended = WAN.run(pipe), fresh(WAN, 6, TEACACHE)
    with fb.enable(pipe, small, "LSL", adapters=[TEACACHE]):
        for denoiser in (pipe.transformer, small):
            add_lora(denoiser)
        assert not torch.equal(WAN.run(pipe), blended)
        for denoiser in (pipe.transformer, small):
            denoiser.unload_lora()
        assert torch.equal(WAN.run(pipe), blended)
    assert torch.equal(WAN.run(pipe), plain)


@pytest.mark.parametrize("spec", [FIRST_BLOCK, TEACACHE, "taylorseer(cache_interval=2, warmup_steps=2)"])
def test_a_denoiser_is_trained_after_a_generation_in_inference_mode(spec: str) -> None:
    """What a cache kept in inference mode may not be in a graph."""
    pipe, small = WAN.pipe(), WAN.make_small()
    inputs = torch.randn(1, 4, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 8, 16)
    with fb.enable(pipe, small, SCHEDULE, adapters=[spec]):
        expected = WAN.run(pipe, 8)
        with torch.inference_mode():
            assert torch.equal(WAN.run(pipe, 8), expected)
        for denoiser in (pipe.transformer, small):
            denoiser(*inputs).sample.square().mean().backward()
            assert all(parameter.grad is not None for parameter in denoiser.blocks.parameters())
            denoiser.zero_grad()
        assert torch.equal(WAN.run(pipe, 8), expected)


def test_freeu_and_deepcache_leave_nothing() -> None:
    family = STABLE_DIFFUSION
    plain, pipe, small = family.pipe(), family.pipe(), family.make_small()
    settings = {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4}
    for one in (plain, pipe):
        one.enable_freeu(**settings)
    expected = family.run(plain)
    assert not torch.equal(expected, family.run(family.pipe()))
    family.run(pipe)
    before = snapshot(pipe, small)
    with fb.enable(pipe, small, "LLL", adapters=["deepcache(interval=1)"]):
        assert torch.equal(family.run(pipe), expected)
    with fb.enable(pipe, small, "LLL", adapters=["deepcache(interval=3)"]):
        first = family.run(pipe)
        assert torch.equal(family.run(pipe), first)
    assert snapshot(pipe, small) == before
