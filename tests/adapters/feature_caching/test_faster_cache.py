"""FasterCache under FlowBlending against diffusers' own on a plain pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FasterCacheConfig

import flowblend_plugins as fb
from flowblend_plugins.testing import (
    PipelineSnapshot,
    generate,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from tests.adapters.feature_caching.branches_alone import largest_change, rows
from tests.adapters.feature_caching.native_cache_contract import (
    NativeCacheContract,
    blocks_of,
    recorded,
    small_ltx,
    small_wan,
)
from tests.exactness.pipelines import FAMILIES, VIDEO_TO_VIDEO, Family
from tests.trace.test_flops import RealCount

ESTIMATING = [FAMILIES["cogvideox"], FAMILIES["mochi"]]
estimating = pytest.mark.parametrize("family", ESTIMATING, ids=lambda family: family.name)
AXES = {"cogvideox": "BFCHW", "mochi": "BCFHW"}
RANGES = {"cogvideox": (-1, 700), "mochi": (-1, 990)}  # two timesteps are above, as many as we warm up


def config(timestep: Any, timesteps: tuple[int, int], axes: str | None = None) -> Any:
    """``axes`` where guidance is one batch of video latents; else attention alone is extrapolated."""
    return FasterCacheConfig(
        spatial_attention_timestep_skip_range=timesteps,
        unconditional_batch_timestep_skip_range=timesteps,
        tensor_format=axes or "BCFHW",
        is_guidance_distilled=axes is None,
        current_timestep_callback=timestep,
    )


def within(timesteps: tuple[int, int], options: str = "") -> str:
    return f"faster_cache(attention_timestep_range={timesteps}, uncond_timestep_range={timesteps}{options})"


class FasterCacheContract(NativeCacheContract):
    spec = within((-1, 930))
    never_spec = within((-1, 1001), ", attention_interval=1, uncond_interval=1")
    skipped_outcome = "predict"
    wrong_specs = (
        "faster_cache(warmup_steps=0)",
        "faster_cache(attention_interval=0)",
        "faster_cache(uncond_interval=-1)",
        "faster_cache(attention_weight=-0.5)",
        "faster_cache(alpha_low_frequency=1e999)",
        "faster_cache(attention_timestep_range=(681, -1))",
        "faster_cache(uncond_timestep_range=(641, 641))",
        "faster_cache(denoisers='l')",
        "faster_cache(interval=2)",
    )

    def config(self) -> Any:
        pipe = self.pipe
        return config(lambda: pipe.current_timestep, (-1, 930))

    def probe_module(self, denoiser: Any) -> torch.nn.Module:
        return blocks_of(denoiser)[-1].attn1.to_q

    def test_a_branch_answers_as_if_the_other_were_not_there(self) -> None:
        pipe = self.make_pipeline()
        with fb.enable(pipe, schedule="LLL", adapters=[self.spec]), recorded(pipe.transformer) as calls:
            generate(pipe, **self.call)
        timesteps = [float(timestep) for timestep in pipe.scheduler.timesteps]
        branches = [calls] if self.call else [rows(calls, 0), rows(calls, 1)]
        for branch in branches:
            twin, ahead = self.make_pipeline().transformer, list(timesteps)
            twin.enable_cache(config(lambda ahead=ahead: ahead[0], (-1, 930)))
            twin.register_forward_hook(lambda *_, ahead=ahead: ahead.append(ahead.pop(0)))
            assert largest_change(branch, twin) < 1e-5


class TestOnLTXWithGuidance(FasterCacheContract):
    make_small = staticmethod(small_ltx)

    def make_pipeline(self) -> Any:
        self.pipe = tiny_ltx_pipeline()
        return self.pipe


class TestOnWanWithoutGuidance(FasterCacheContract):
    call = {"guidance_scale": 1.0}  # noqa: RUF012
    make_small = staticmethod(small_wan)

    def make_pipeline(self) -> Any:
        self.pipe = tiny_wan_pipeline()
        return self.pipe


# -- uncond estimated from cond ------------------------------------------------------------------------------------


def rows_computed(denoiser: Any) -> tuple[list[int], Any]:
    """How many batch rows went through the last block at each of its calls; and the handle."""
    seen: list[int] = []
    handle = blocks_of(denoiser)[-1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    return seen, handle


@estimating
@pytest.mark.parametrize("guidance_scale", [6.0, 1.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_the_cache_by_hand_with_guidance_and_without(family: Family, guidance_scale: float, batch: int) -> None:
    """Without guidance a batch of two must not be taken for two branches: nothing in it says that it is none."""
    plain, pipe = family.pipe(), family.pipe()
    axes = AXES[family.name] if guidance_scale > 1.0 else None
    plain.transformer.enable_cache(config(lambda: plain.current_timestep, RANGES[family.name], axes))
    call = {"guidance_scale": guidance_scale, "batch": batch}
    with fb.enable(pipe, schedule="LLL", adapters=[within(RANGES[family.name])]) as blend:
        assert torch.equal(family.run(pipe, 8, **call), family.run(plain, 8, **call))
        assert blend.trace.generations[0].num_forwards("L", "predict") > 0
        assert not torch.equal(family.run(family.pipe(), 8, **call), family.run(plain, 8, **call))


@estimating
def test_guidance_may_change_between_generations(family: Family) -> None:
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LSL", adapters=[within((-1, 1001))]) as blend:
        guided, free = (family.run(pipe, 10, guidance_scale=scale) for scale in (6.0, 1.0))
        assert torch.equal(family.run(pipe, 10, guidance_scale=6.0), guided)
        assert torch.equal(family.run(pipe, 10, guidance_scale=1.0), free)
        assert all(g.num_forwards("S", "predict") > 0 for g in blend.trace.generations)


@estimating
def test_the_first_steps_of_a_stage_run_both_branches_and_the_trace_says_where_cond_alone_ran(family: Family) -> None:
    pipe, twin = family.pipe(), family.pipe().transformer
    with fb.enable(pipe, family.make_small(), "L:4,S:4,L:4", adapters=[within((-1, 1001))]) as blend:
        seen = {letter: rows_computed(denoiser)[0] for letter, denoiser in blend.denoisers.items()}
        with recorded(pipe.transformer) as calls:
            family.run(pipe, 12)
        outcomes = [call.outcome for call in blend.trace.generations[0].calls]
    assert outcomes == (["compute"] * 2 + ["predict"] * 2) * 3
    assert seen["L"][:4] + seen["S"] + seen["L"][4:] == [2, 2, 1, 1] * 3
    with torch.no_grad():
        assert all(torch.equal(output, twin(**kwargs)[0]) for kwargs, output in calls[4:6])


@estimating
def test_where_attention_is_computed_and_uncond_is_not_the_call_is_a_forecast(family: Family) -> None:
    pipe = family.pipe()
    only_uncond = "faster_cache(attention_interval=1, uncond_timestep_range=(-1, 1001))"
    with fb.enable(pipe, schedule="LLL", adapters=[only_uncond]) as blend:
        seen, _ = rows_computed(pipe.transformer)
        family.run(pipe, 6)
        assert seen == [2, 2, 1, 1, 1, 2]
        outcomes = [call.outcome for call in blend.trace.generations[0].calls]
    assert outcomes == ["compute"] * 2 + ["predict"] * 3 + ["compute"]


@estimating
def test_cond_does_not_depend_on_uncond(family: Family) -> None:
    """uncond is estimated from cond, by intention; never the other way round."""
    pipe = family.pipe()
    with fb.enable(pipe, schedule="LLL", adapters=[within(RANGES[family.name])]), recorded(pipe.transformer) as calls:
        family.run(pipe, 8)
    other = [({**kwargs}, output) for kwargs, output in calls]
    for kwargs, _ in other:
        text = kwargs["encoder_hidden_states"].clone()
        text[0] = torch.randn(text[0].shape, generator=torch.Generator().manual_seed(9))
        kwargs["encoder_hidden_states"] = text
    timesteps = [1000.0, 1000.0] + [500.0] * 6
    twin, position = family.pipe().transformer, [0]
    twin.enable_cache(config(lambda: timesteps[position[0]], (-1, 990), AXES[family.name]))
    with torch.no_grad():
        for index, (kwargs, output) in enumerate(other):
            position[0] = index
            uncond, cond = twin(**kwargs)[0].chunk(2)
            assert torch.equal(cond, output.chunk(2)[1])
            assert not torch.equal(uncond, output.chunk(2)[0])


@estimating
def test_offloading_does_not_take_the_estimate_away_after_the_first_generation(family: Family) -> None:
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LSL", adapters=[within((-1, 1001))]):
        expected = family.run(pipe, 10)
    pipe.enable_model_cpu_offload(device="cpu")
    plain = family.run(pipe, 10)
    with fb.enable(pipe, family.make_small(), "LSL", adapters=[within((-1, 1001))]):
        for _ in range(3):
            assert torch.equal(family.run(pipe, 10), expected)
    for _ in range(2):
        assert torch.equal(family.run(pipe, 10), plain)


def test_where_attention_alone_is_extrapolated_the_flops_are_those_of_what_ran() -> None:
    pipe = tiny_ltx_pipeline()
    with fb.enable(pipe, small_ltx(), "LSL", adapters=[within((-1, 1001))]) as blend:
        real = RealCount(list(blend.denoisers.values()))
        with real.running():
            generate(pipe)
        flops = blend.trace.flops()
        assert blend.trace.generations[0].num_forwards("L", "predict") > 0
    assert (flops.linear, flops.full) == (real.linear, real.total)


# -- where branches would mix, and where diffusers alone crashes ---------------------------------------------------


def test_by_hand_on_wan_uncond_really_receives_conds_attention() -> None:
    """Why it is refused there: the probe of the contract, on diffusers alone, finds what it is meant to find."""
    pipe = tiny_wan_pipeline()
    timesteps = [1000.0] * 4 + [500.0] * 8
    position = [0]
    pipe.transformer.enable_cache(config(lambda: timesteps[position[0]], (-1, 990)))
    with recorded(pipe.transformer) as calls:
        pipe.transformer.register_forward_pre_hook(lambda *_: position.__setitem__(0, min(len(calls), 11)))
        generate(pipe, 6)
    twin = tiny_wan_pipeline().transformer
    twin.enable_cache(config(lambda: timesteps[position[0]], (-1, 990)))
    own_step = iter(range(1, 12, 2))
    twin.register_forward_pre_hook(lambda *_: position.__setitem__(0, next(own_step)))
    assert largest_change(calls[1::2], twin) > 1e-3


def test_on_wan_a_call_with_guidance_is_refused_and_one_without_is_not() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, small_wan(), "LSL", adapters=["faster_cache"]):
        with pytest.raises(fb.StackError, match="one branch would be answered from the other's state"):
            generate(pipe)
        generate(pipe, guidance_scale=1.0)


def test_where_the_pipeline_does_not_say_the_second_call_of_a_step_is_refused() -> None:
    pipe = VIDEO_TO_VIDEO.pipe()
    with fb.enable(pipe, VIDEO_TO_VIDEO.make_small(), "LSL", adapters=["faster_cache"]):
        with pytest.raises(fb.StackError, match="more than once at a step"):
            VIDEO_TO_VIDEO.run(pipe)
        VIDEO_TO_VIDEO.run(pipe, guidance_scale=1.0)


def test_by_hand_a_denoiser_that_enters_within_the_range_crashes_and_here_it_does_not() -> None:
    by_hand, small = tiny_ltx_pipeline(), small_ltx()
    small.enable_cache(config(lambda: by_hand.current_timestep, (-1, 800)))
    with fb.enable(by_hand, small, "LSS"), pytest.raises(TypeError):
        generate(by_hand)
    pipe = tiny_ltx_pipeline()
    with fb.enable(pipe, small_ltx(), "LSS", adapters=[within((-1, 800))]) as blend:
        generate(pipe)
        assert blend.trace.generations[0].num_forwards("S", "predict") > 0


def test_an_unknown_letter_is_refused_with_those_there_are() -> None:
    pipe = tiny_wan_pipeline()
    before = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.StackError, match="names X, and the denoisers of this blend are L, S"):
        fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=["faster_cache(denoisers='LX')"])
    assert before.differences(pipe) == []
