"""cache-dit under FlowBlending against cache-dit's own ``enable_cache`` on a plain pipeline."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("cache_dit", reason='needs the extra: pip install "flowblend-plugins[cache-dit]"')

import cache_dit
from cache_dit import DBCacheConfig, DBPruneConfig
from diffusers import FirstBlockCacheConfig, LTXPipeline, WanPipeline, WanVideoToVideoPipeline

import flowblend_plugins as fb
from flowblend_adapters.feature_caching.cache_dit.adapter import CacheDit
from flowblend_adapters.feature_caching.cache_dit.adopted import AdoptedCacheDit
from flowblend_plugins.testing import (
    PipelineSnapshot,
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from tests.adapters.feature_caching.native_cache_contract import (
    ROUND_TRIP,
    NativeCacheContract,
    OnLTX,
    OnWan,
    recorded,
    small_wan,
)
from tests.exactness.pipelines import FAMILIES, SKYREELS, STABLE_DIFFUSION, VIDEO_TO_VIDEO, Family

THRESHOLD = 0.5


def config(**options: Any) -> DBCacheConfig:
    settings: dict[str, Any] = {"Fn_compute_blocks": 1, "max_warmup_steps": 0, "residual_diff_threshold": THRESHOLD}
    return DBCacheConfig(**(settings | options))


@pytest.fixture(autouse=True)
def _pipeline_classes_as_before() -> Iterator[None]:
    """cache-dit patches classes, so what a test does by hand is taken off for the next."""
    classes = [WanPipeline, LTXPipeline, WanVideoToVideoPipeline]
    before = [dict(vars(cls)) for cls in classes]
    yield
    for cls, attributes in zip(classes, before, strict=True):
        undo_class_patch(cls, attributes)


def undo_class_patch(cls: type, attributes: dict[str, Any]) -> None:
    for name in vars(cls).keys() - attributes.keys():
        delattr(cls, name)
    cls.__call__ = attributes["__call__"]


class CacheDitContract(NativeCacheContract):
    spec = f"cache_dit(threshold={THRESHOLD})"
    never_spec = "cache_dit(threshold=0.0)"
    wrong_specs = (
        "cache_dit(threshold=-0.1)",
        "cache_dit(threshold='a')",
        "cache_dit(limit=1)",
        "cache_dit(fn_blocks=0)",
        "cache_dit(bn_blocks=-1)",
        "cache_dit(max_cached_steps=-1)",
        "cache_dit(max_continuous_cached_steps=-1)",
        "cache_dit(denoisers='l')",
        "cache_dit(warmup_steps=-1)",
    )

    def put_on_by_hand(self, pipe: Any) -> None:
        cache_dit.enable_cache(pipe, cache_config=config())

    def test_a_branch_answers_as_if_the_other_were_not_there(self) -> None:
        """Each branch's calls are replayed alone on a twin with cache-dit's own cache: mixed state would show."""
        pipe = self.make_pipeline()
        with self.blended(pipe, "LLL") as blend, recorded(pipe.transformer) as calls:
            generate(pipe, **self.call)
            steps = [call.step for call in blend.trace.generations[-1].calls]
            outcomes = [call.outcome for call in blend.trace.generations[-1].calls]
        assert self.skipped_outcome in outcomes
        for branch in {step.branch for step in steps}:
            twin = self.make_pipeline().transformer
            cache_dit.enable_cache(twin, cache_config=config(enable_separate_cfg=False))
            for step, (kwargs, output) in zip(steps, calls, strict=True):
                if step.branch == branch:
                    with torch.no_grad():
                        assert torch.equal(twin(**kwargs)[0], output)

    def test_a_denoiser_that_has_a_cache_is_refused(self) -> None:
        pipe, small = self.make_pipeline(), self.make_small()
        before = PipelineSnapshot.of(pipe)
        small.enable_cache(FirstBlockCacheConfig())
        with pytest.raises(fb.StackError, match=r"denoiser S: it has a cache of diffusers' .* Call disable_cache\(\)"):
            fb.enable(pipe, small, "LSL", adapters=[self.spec])
        small.disable_cache()
        cache_dit.enable_cache(small, cache_config=config())
        with pytest.raises(fb.StackError, match=r"denoiser S: cache-dit is enabled on it .* cache_dit\.disable_cache"):
            fb.enable(pipe, small, "LSL", adapters=[self.spec])
        assert before.differences(pipe) == []

    def test_nothing_is_patched_that_other_pipelines_share(self) -> None:
        pipe, other = self.make_pipeline(), self.make_pipeline()
        before = dict(vars(type(pipe))), list(pipe.transformer.state_dict()), generate(other, **self.call)
        pipeline_class = type(pipe)
        with self.blended(pipe):
            assert dict(vars(pipeline_class)) == before[0]
            generate(pipe, **self.call)
            assert torch.equal(generate(other, **self.call), before[2])
            assert list(pipe.transformer.state_dict()) == before[1]
        assert dict(vars(pipeline_class)) == before[0]
        assert list(pipe.transformer.state_dict()) == before[1]

    def test_the_trace_sums_up_what_cache_dit_says_of_itself(self) -> None:
        plain = self.make_pipeline()
        self.by_hand(plain)
        stats = cache_dit.summary(plain, logging=False)[-1]
        diffs = [stats.residual_diffs[str(step)] for step in stats.cached_steps]
        diffs += [stats.cfg_residual_diffs[str(step)] for step in stats.cfg_cached_steps]
        assert diffs
        pipe = self.make_pipeline()
        with self.blended(pipe, "LLL") as blend:
            generate(pipe, **self.call)
            last = blend.trace.generations[-1]
            num_reused = len(diffs)
            (note,) = last.notes
            assert note.startswith("cache_dit on L: DBCache_F1B0_W0I1M0MC0_R0.5")
            assert f", {num_reused} of {len(last.calls)} calls not computed, at residual differences " in note
            assert f"{min(diffs):.3g} to {max(diffs):.3g} (median " in note
            assert note in blend.trace.summary()
            assert blend.trace.to_dict()["generations"][-1]["notes"] == [note]


class TestCacheDitOnWan(OnWan, CacheDitContract):
    pass


class TestCacheDitOnLTX(OnLTX, CacheDitContract):
    pass


# -- cache_dit, beyond the contract of caches --------------------------------------------------------------------------


def refusal(pipe: Any, small: Any, *adapters: str) -> str:
    before = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.StackError) as refused:
        fb.enable(pipe, small, "LSL", adapters=adapters)
    assert before.differences(pipe) == []
    return str(refused.value)


ADAPTED = [*(FAMILIES[name] for name in ("wan", "ltx", "cogvideox", "mochi")), SKYREELS]


@pytest.mark.parametrize("family", ADAPTED, ids=lambda family: family.name)
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_with_and_without_guidance_it_equals_cache_dit_by_hand(family: Family, guidance_scale: float) -> None:
    """By hand the user has to say whether the branches are called apart; here nobody has to."""
    plain, pipe = family.pipe(), family.pipe()
    before = dict(vars(type(plain)))
    is_apart = family.name in ("wan", "skyreels-v2") and guidance_scale > 1
    cache_dit.enable_cache(plain, cache_config=config(enable_separate_cfg=is_apart))
    expected = family.run(plain, guidance_scale=guidance_scale)
    undo_class_patch(type(plain), before)
    assert not torch.equal(expected, family.run(pipe, guidance_scale=guidance_scale))
    with fb.enable(pipe, None, "LLL", adapters=[f"cache_dit(threshold={THRESHOLD})"]) as blend:
        assert torch.equal(family.run(pipe, guidance_scale=guidance_scale), expected)
        assert blend.trace.generations[-1].num_forwards("L", "reuse") > 0


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("warmup_steps=4", {"max_warmup_steps": 4}),
        ("max_cached_steps=2", {"max_cached_steps": 2}),
        ("max_continuous_cached_steps=1", {"max_continuous_cached_steps": 1}),
    ],
)
def test_an_option_is_that_of_cache_dit(spec: str, options: dict[str, int]) -> None:
    plain, pipe = tiny_wan_pipeline(), tiny_wan_pipeline()
    cache_dit.enable_cache(plain, cache_config=config(**options))
    expected = generate(plain)
    with fb.enable(pipe, None, "LLL", adapters=[f"cache_dit(threshold={THRESHOLD})"]):
        assert not torch.equal(generate(pipe), expected)
    with fb.enable(pipe, None, "LLL", adapters=[f"cache_dit(threshold={THRESHOLD}, {spec})"]):
        assert torch.equal(generate(pipe), expected)


def three_blocks() -> Any:
    pipe = tiny_wan_pipeline()
    pipe.register_modules(transformer=tiny_wan_denoiser(0, layers=3, heads=2))
    return pipe


def test_last_blocks_that_always_run_are_those_of_cache_dit() -> None:
    plain, pipe = three_blocks(), three_blocks()
    cache_dit.enable_cache(plain, cache_config=config(Bn_compute_blocks=1))
    expected = generate(plain)
    with fb.enable(pipe, None, "LLL", adapters=[f"cache_dit(threshold={THRESHOLD}, bn_blocks=1)"]):
        assert torch.equal(generate(pipe), expected)


def test_branches_that_the_pipeline_does_not_name_are_told_apart() -> None:
    plain, pipe = VIDEO_TO_VIDEO.pipe(), VIDEO_TO_VIDEO.pipe()
    cache_dit.enable_cache(plain, cache_config=config(enable_separate_cfg=True))
    expected = VIDEO_TO_VIDEO.run(plain)
    with fb.enable(pipe, None, "LLL", adapters=[f"cache_dit(threshold={THRESHOLD})"]) as blend:
        assert torch.equal(VIDEO_TO_VIDEO.run(pipe), expected)
        assert blend.trace.generations[-1].num_forwards("L", "reuse") > 0


def test_where_guidance_pauses_a_branch_is_not_taken_for_the_other() -> None:
    """Counting calls, cache-dit would take the next cond for an uncond."""

    def pause(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if step == 3 else 5.0
        return tensors

    pipe = tiny_wan_pipeline()
    with (
        fb.enable(pipe, None, "LLL", adapters=["cache_dit(threshold=1e6)"]) as blend,
        recorded(pipe.transformer) as calls,
    ):
        generate(pipe, callback_on_step_end=pause)
        steps = [call.step for call in blend.trace.generations[-1].calls]
    assert [s.step_index for s in steps if s.branch == "uncond"] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    for branch in ("cond", "uncond"):
        twin = tiny_wan_pipeline().transformer
        cache_dit.enable_cache(twin, cache_config=config(enable_separate_cfg=False, residual_diff_threshold=1e6))
        for step, (kwargs, output) in zip(steps, calls, strict=True):
            if step.branch == branch:
                with torch.no_grad():
                    assert torch.equal(twin(**kwargs)[0], output)


def test_kept_state_is_used_at_reentry_when_asked_for() -> None:
    results = {}
    for reentry in ("recompute", "keep"):
        pipe = tiny_wan_pipeline()
        adapters = ["cache_dit(threshold=1e6)"]
        with fb.enable(pipe, small_wan(), ROUND_TRIP, adapters=adapters, reentry=reentry) as blend:
            results[reentry] = generate(pipe)
            assert torch.equal(generate(pipe), results[reentry])
            at_reentry = {c.outcome for c in blend.trace.generations[-1].calls if c.step.step_index == 6}
        assert at_reentry == ({"compute"} if reentry == "recompute" else {"reuse"})
    assert not torch.equal(results["recompute"], results["keep"])


def test_a_call_apart_from_the_pipeline_is_not_cached() -> None:
    pipe, twin = tiny_wan_pipeline(), tiny_wan_pipeline().transformer
    with fb.enable(pipe, None, "LLL", adapters=["cache_dit(threshold=1e6)"]):
        with recorded(pipe.transformer) as calls:
            expected = generate(pipe)

        def call_apart(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            kwargs = calls[0][0]
            assert torch.equal(pipe.transformer(**kwargs)[0], twin(**kwargs)[0])
            return tensors

        assert torch.equal(generate(pipe, callback_on_step_end=call_apart), expected)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_ltx_pipeline()
    with fb.enable(pipe, None, "LLL", adapters=["cache_dit"]):
        generate(pipe)
    assert capsys.readouterr().out == ""


def test_flops_leave_out_the_blocks_that_did_not_run_and_no_others() -> None:
    pipe = three_blocks()
    with fb.enable(pipe, None, "LLL", adapters=[f"cache_dit(threshold={THRESHOLD}, bn_blocks=1)"]) as blend:
        generate(pipe)
        reused = [call for call in blend.trace.generations[-1].calls if call.outcome == "reuse"]
        assert reused
        assert {call.skipped for call in reused} == {frozenset({"blocks.1"})}


def test_too_few_blocks_are_refused() -> None:
    message = refusal(tiny_wan_pipeline(), tiny_wan_denoiser(layers=1), "cache_dit")
    assert "denoiser S: fn_blocks=1 and bn_blocks=0 always run" in message
    assert "has only 1 in `blocks`" in message


def test_an_unknown_letter_is_refused_with_those_there_are() -> None:
    message = refusal(tiny_wan_pipeline(), small_wan(), "cache_dit(denoisers='LM')")
    assert "names M, and the denoisers of this blend are L, S" in message


def test_a_second_cache_is_refused() -> None:
    message = refusal(tiny_wan_pipeline(), small_wan(), "cache_dit", "first_block_cache")
    assert "'cache_dit' and 'first_block_cache' both take over the denoiser's blocks" in message
    pipe = tiny_wan_pipeline()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    message = refusal(pipe, small_wan(), "cache_dit")
    assert "'adopted_diffusers_cache' and 'cache_dit' both take over the denoiser's blocks" in message


def test_a_unet_is_refused() -> None:
    message = refusal(STABLE_DIFFUSION.pipe(), STABLE_DIFFUSION.make_small(), "cache_dit")
    assert "'cache_dit' runs on a transformer" in message


def test_a_denoiser_that_cache_dit_would_rewrite_is_refused() -> None:
    family = FAMILIES["ltx2"]
    assert "cache-dit would replace the forward of LTX2" in refusal(family.pipe(), family.make_small(), "cache_dit")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cache_dit" else find_spec(name))
    message = refusal(tiny_wan_pipeline(), small_wan(), "cache_dit")
    assert message == (
        "'cache_dit': the package cache-dit is not installed. Run: pip install \"flowblend-plugins[cache-dit]\"."
    )


# -- adopted_cache_dit -------------------------------------------------------------------------------------------------

DOORS = {"pipeline": lambda pipe: pipe, "transformer": lambda pipe: pipe.transformer}
either_door = pytest.mark.parametrize("door", DOORS)
adoptable = pytest.mark.parametrize("make_pipe", [tiny_wan_pipeline, tiny_ltx_pipeline], ids=["wan", "ltx"])


def set_up(pipe: Any, door: str = "pipeline", **options: Any) -> Any:
    cache_dit.enable_cache(DOORS[door](pipe), cache_config=config(**options))
    return pipe


def small_of(pipe: Any) -> Any:
    return small_wan() if hasattr(pipe.transformer, "blocks") else tiny_ltx_denoiser(layers=2)


@adoptable
@either_door
def test_an_enabled_cache_dit_is_adopted_and_alone_it_is_what_it_was(make_pipe: Any, door: str) -> None:
    expected = generate(set_up(make_pipe(), door))
    pipe = set_up(make_pipe(), door)
    with fb.enable(pipe, small_of(pipe), "LLL") as blend:
        assert [adapter.name for adapter in blend.adapters] == ["adopted_cache_dit"]
        assert torch.equal(generate(pipe), expected)
        assert torch.equal(generate(pipe), expected)
        last = blend.trace.generations[-1]
        assert last.num_forwards("L", "reuse") > 0
        assert last.notes[0].startswith("adopted_cache_dit on L: DBCache_F1B0")


@adoptable
@either_door
def test_an_adopted_cache_dit_is_fresh_at_the_switch_and_in_every_generation(make_pipe: Any, door: str) -> None:
    pipe, twin = set_up(make_pipe(), door), make_pipe().transformer
    with fb.enable(pipe, small_of(pipe), ROUND_TRIP) as blend, recorded(pipe.transformer) as calls:
        first = generate(pipe)
        per_step = len(calls) // 8
        with torch.no_grad():
            for kwargs, output in calls[4 * per_step : 5 * per_step]:
                assert torch.equal(output, twin(**kwargs)[0])
        assert blend.trace.generations[-1].num_forwards("S", "reuse") == 0
        generate(pipe, seed=1)
        assert torch.equal(generate(pipe), first)


@either_door
def test_an_adopted_cache_dit_is_left_as_it_was_found(door: str) -> None:
    pipe = set_up(tiny_wan_pipeline(), door)
    expected = generate(set_up(tiny_wan_pipeline(), door))
    generate(pipe)
    before, pipeline_class, attributes = PipelineSnapshot.of(pipe), type(pipe), dict(vars(type(pipe)))
    manager = pipe.transformer._context_manager
    contexts, current = dict(manager._cached_context_manager), manager.get_context()

    def interrupt(pipeline: Any, step_index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with fb.enable(pipe, small_wan(), "LSL"):
        blended = generate(pipe)
        with pytest.raises(KeyboardInterrupt):
            generate(pipe, callback_on_step_end=interrupt)
        assert torch.equal(generate(pipe), blended)
    assert before.differences(pipe) == []
    assert type(pipe) is pipeline_class
    assert dict(vars(type(pipe))) == attributes
    assert pipe.transformer._context_manager is manager
    if door == "transformer":  # the other door makes new contexts at the start of every generation
        assert manager._cached_context_manager == contexts
        assert manager.get_context() is current
        cache_dit.refresh_context(pipe.transformer)
    assert torch.equal(generate(pipe), expected)


def test_without_guidance_an_adopted_cache_dit_does_not_take_every_second_step_for_the_other_branch() -> None:
    expected = generate(set_up(tiny_wan_pipeline(), enable_separate_cfg=False), guidance_scale=1.0)
    by_hand = generate(set_up(tiny_wan_pipeline()), guidance_scale=1.0)
    assert not torch.equal(by_hand, expected)
    pipe = set_up(tiny_wan_pipeline())
    with fb.enable(pipe, small_wan(), "LLL"):
        assert torch.equal(generate(pipe, guidance_scale=1.0), expected)


def test_mirrored_it_is_the_same_as_cache_dit_on_both() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, small_wan(), ROUND_TRIP, adapters=[f"cache_dit(threshold={THRESHOLD})"]):
        expected = generate(pipe)
    set_up(pipe)
    with fb.enable(pipe, small_wan(), ROUND_TRIP, adapters=["adopted_cache_dit(mirror=True)"]) as blend:
        assert [adapter.name for adapter in blend.adapters] == ["adopted_cache_dit"]
        assert torch.equal(generate(pipe), expected)
        assert blend.trace.generations[-1].num_forwards("S", "reuse") > 0


def test_a_small_denoiser_that_the_user_cached_too_is_steered_too() -> None:
    pipe, small = set_up(tiny_wan_pipeline()), small_wan()
    cache_dit.enable_cache(small, cache_config=config())
    with fb.enable(pipe, small, ROUND_TRIP) as blend:
        first = generate(pipe)
        assert blend.trace.generations[-1].num_forwards("S", "reuse") > 0
        assert torch.equal(generate(pipe), first)


def test_an_adopted_cache_dit_survives_offloading_that_came_after_it() -> None:
    pipe = set_up(tiny_wan_pipeline())
    with fb.enable(pipe, small_wan(), ROUND_TRIP):
        expected = generate(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with fb.enable(pipe, small_wan(), ROUND_TRIP) as blend:
        for _ in range(3):
            assert torch.equal(generate(pipe), expected)
            assert blend.trace.generations[-1].num_forwards("L", "reuse") > 0


def test_an_adopted_cache_dit_that_offloading_would_take_off_is_refused() -> None:
    pipe = tiny_wan_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    set_up(pipe)
    with pytest.raises(fb.StackError, match="enabled after model offloading, which takes it off"):
        fb.enable(pipe, small_wan(), "LSL")


def test_another_cache_beside_an_adopted_cache_dit_is_refused() -> None:
    cached_small = small_wan()
    cache_dit.enable_cache(cached_small, cache_config=config())
    message = refusal(tiny_wan_pipeline(), cached_small, "first_block_cache(threshold=0.1)")
    assert "'first_block_cache' on denoiser S: cache-dit is enabled on it already" in message
    message = refusal(set_up(tiny_wan_pipeline()), small_wan(), "first_block_cache")
    assert "'adopted_cache_dit' and 'first_block_cache' are two feature caches on one denoiser" in message
    pipe = set_up(tiny_wan_pipeline())
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    assert "two feature caches on one denoiser" in refusal(pipe, small_wan())
    assert "two feature caches on one denoiser" in refusal(set_up(tiny_wan_pipeline()), small_wan(), "cache_dit")


def test_adoption_where_there_is_nothing_to_adopt_is_refused() -> None:
    message = refusal(tiny_wan_pipeline(), small_wan(), "adopted_cache_dit")
    assert "cache-dit is not enabled on the WanTransformer3DModel. Call cache_dit.enable_cache(pipe)" in message


def test_an_adopted_set_up_that_cannot_be_steered_is_refused() -> None:
    pipe = tiny_wan_pipeline()
    cache_dit.enable_cache(pipe, cache_config=DBPruneConfig(Fn_compute_blocks=1))
    assert "cache-dit runs as DBPrune, and FlowBlending can steer DBCache only" in refusal(pipe, small_wan())


# -- the docs page -----------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "caches" / "cache_dit.md").read_text()


@pytest.mark.parametrize("example", re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S), ids=["own", "adopted"])
def test_an_example_of_the_page_runs_and_shows_the_cache_at_work(
    example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(example, "cache_dit.md", "exec"), {"__name__": "example"})
    (forwards,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Forwards: ")]
    large, small = forwards.split("; ")
    assert "reuse" in large
    assert "reuse" in small


def test_the_tables_of_the_page_have_every_option_with_its_default() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", PAGE, re.M))
    options = {f.name: repr(f.default) for adapter in (CacheDit, AdoptedCacheDit) for f in dataclasses.fields(adapter)}
    assert shown == options
