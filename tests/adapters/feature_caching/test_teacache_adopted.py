"""A TeaCache patched in as its scripts do it, before ``enable()``: right in a blend, and given back untouched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_adapters.feature_caching.teacache.adopted import AdoptedTeaCache
from flowblend_plugins.testing.snapshot import snapshot
from tests.adapters.feature_caching.teacache_by_hand import patch_instance, patched, patched_class
from tests.exactness.pipelines import FAMILIES, Family
from tests.exactness.test_undo import Stumble, stumble_at_call

# (family, threshold, retention): some of ten steps are reused and some are not
SETTINGS = {"wan": ("wan", 0.65, True), "wan, no retention": ("wan", 1.2, False), "ltx": ("ltx", 0.15, True)}
every_setting = pytest.mark.parametrize("setting", SETTINGS)
on_class_or_instance = pytest.mark.parametrize("where", ["class", "instance"])


@contextmanager
def patched_pipe(
    setting: str, where: str, steps: int = 10, threshold: float | None = None
) -> Iterator[tuple[Family, Any]]:
    name, chosen, retention = SETTINGS[setting]
    family = FAMILIES[name]
    patch = patched(name, chosen if threshold is None else threshold, steps, retention)
    pipe = family.pipe()
    if where == "class":
        with patched_class(*patch):
            yield family, pipe
    else:
        patch_instance(pipe.transformer, *patch[1:])
        yield family, pipe


def outcomes(blend: fb.Blend, branch: str = "cond") -> str:
    """One letter a step: computed or reused."""
    assert blend.trace.last is not None
    calls = [c for c in blend.trace.last.calls if c.step.branch in (branch, "cond_uncond")]
    return "".join(call.outcome[0] for call in calls)


@every_setting
@on_class_or_instance
def test_lll_is_the_patch_alone_and_the_trace_says_what_was_reused(setting: str, where: str) -> None:
    with patched_pipe(setting, where) as (family, pipe):
        alone = family.run(pipe, 10)
    plain = family.run(family.pipe(), 10)
    assert not torch.equal(alone, plain)
    with patched_pipe(setting, where) as (family, pipe):
        blend = fb.enable(pipe, family.make_small(), "LLL")
        assert [adapter.name for adapter in blend.adapters] == ["adopted_teacache"]
        for _ in range(2):
            assert torch.equal(family.run(pipe, 10), alone)
        assert {"c", "r"} == set(outcomes(blend))
        blend.disable()
        assert torch.equal(family.run(pipe, 10), alone)  # the user's patch goes on working


@every_setting
@on_class_or_instance
def test_disable_gives_the_patch_back_untouched(setting: str, where: str) -> None:
    with patched_pipe(setting, where) as (family, pipe):
        family.run(pipe, 10)
        small = family.make_small()
        before = snapshot(pipe, small)
        values = {name: value for name, value in vars(pipe.transformer).items() if not name.startswith("_")}
        class_values = dict(vars(type(pipe.transformer)))
        blend = fb.enable(pipe, small, "LSL")
        family.run(pipe, 10)
        blend.disable()
        assert snapshot(pipe, small) == before
        now = {name: value for name, value in vars(pipe.transformer).items() if not name.startswith("_")}
        assert now.keys() == values.keys()
        assert all(now[name] is values[name] for name in values)  # tensors too: the very objects
        assert dict(vars(type(pipe.transformer))) == class_values


@every_setting
@pytest.mark.parametrize("mirror", [False, True])
@on_class_or_instance
def test_the_first_step_of_a_stage_is_computed_and_counters_follow_real_steps(
    setting: str, mirror: bool, where: str
) -> None:
    """A threshold of a million reuses whatever may be, so what is computed is what the counters force."""
    name = SETTINGS[setting][0]
    with patched_pipe(setting, where, steps=12, threshold=1e6) as (family, pipe):
        uncached = family.pipe().transformer
        uncached.enable_teacache = False
        calls: list[tuple[dict[str, Any], torch.Tensor]] = []
        counts: list[tuple[int, int]] = []
        adapters = [AdoptedTeaCache(mirror=True)] if mirror else []
        with fb.enable(pipe, family.make_small(), "L:8,S:2,L:2", adapters=adapters) as blend:
            assert len(blend.adapters) == 1
            pipe.transformer.register_forward_hook(
                lambda m, a, kw, out: calls.append((kw, out[0].clone())), with_kwargs=True
            )
            pipe.transformer.patch_embedding.register_forward_hook(
                lambda *_: counts.append((pipe.transformer.cnt, pipe.transformer.num_steps))
            ) if name == "wan" else None
            first = family.run(pipe, 12)
            large = {"wan": "cccccrrr{}cr", "wan, no retention": "crrrrrrr{}cc", "ltx": "crrrrrrr{}cc"}[setting]
            assert outcomes(blend) == large.format("cr" if mirror else "cc")
            per_step = len(calls) // 10
            with torch.no_grad():
                for kw, out in calls[8 * per_step : 9 * per_step]:
                    assert torch.equal(out, uncached(**kw)[0])
            if name == "wan":  # step 10 has nothing to compare with, so it is counted as the first
                assert counts == [(c, 24) for c in (*range(16), 0, 1, 22, 23)]
            assert torch.equal(family.run(pipe, 12), first)


def test_without_mirror_the_small_denoiser_computes_though_its_class_is_patched() -> None:
    with (
        patched_pipe("wan, no retention", "class", threshold=1e6) as (family, pipe),
        fb.enable(pipe, family.make_small(), "SSS") as blend,
    ):
        blended = family.run(pipe, 10)
        assert set(outcomes(blend)) == {"c"}
    small = family.pipe()
    small.transformer = family.make_small()
    assert torch.equal(blended, family.run(small, 10))


@pytest.mark.parametrize("steps", [6, 14])
def test_the_number_of_steps_it_believes_in_is_the_real_one(steps: int) -> None:
    """The patch was set up for ten steps; the generation has others, and its last step must be the one computed."""
    with (
        patched_pipe("wan, no retention", "class", steps=10, threshold=1e6) as (family, pipe),
        fb.enable(pipe, family.make_small(), "LLL") as blend,
    ):
        family.run(pipe, steps)
        assert outcomes(blend) == outcomes(blend, "uncond") == "c" + "r" * (steps - 2) + "c"


def test_without_guidance_every_step_continues_the_one_before() -> None:
    """By parity, one branch alone would use two states in turn."""
    with (
        patched_pipe("wan, no retention", "class", threshold=1e6) as (family, pipe),
        fb.enable(pipe, family.make_small(), "LLL") as blend,
    ):
        family.run(pipe, 10, guidance_scale=1.0)
        assert outcomes(blend) == "c" + "r" * 8 + "c"


def test_cond_and_uncond_keep_their_own_residuals() -> None:
    entries: list[torch.Tensor] = []
    ends: list[torch.Tensor] = []
    texts: list[float] = []
    with (
        patched_pipe("wan, no retention", "class", threshold=1e6) as (family, pipe),
        fb.enable(pipe, family.make_small(), "L:4,S:2,L:4") as blend,
    ):
        large = pipe.transformer
        large.patch_embedding.register_forward_hook(lambda m, a, out: entries.append(out.flatten(2).transpose(1, 2)))
        large.norm_out.register_forward_pre_hook(lambda m, a: ends.append(a[0]))
        large.register_forward_pre_hook(
            lambda m, a, kw: texts.append(kw["encoder_hidden_states"].sum().item()), with_kwargs=True
        )
        family.run(pipe, 10)
        assert blend.trace.last is not None
        calls = [call for call in blend.trace.last.calls if call.step.denoiser == "L"]
    made: dict[float, torch.Tensor] = {}
    for entry, end, prompt, call in zip(entries, ends, texts, calls, strict=True):
        if call.outcome == "reuse":
            assert torch.equal(end, entry + made[prompt])
        else:
            made[prompt] = end - entry
    assert len(made) == 2
    assert sum(call.outcome == "reuse" for call in calls) == 10


@on_class_or_instance
def test_an_exception_and_offloading_leave_it_right(where: str) -> None:
    with patched_pipe("wan", where) as (family, pipe):
        alone = family.run(pipe, 10)
        pipe.enable_model_cpu_offload(device="cpu")
        with fb.enable(pipe, family.make_small(), "LLL"):
            assert torch.equal(family.run(pipe, 10), alone)
            handle = stumble_at_call(pipe.transformer, 6)
            with pytest.raises(Stumble):
                family.run(pipe, 10)
            handle.remove()
            assert torch.equal(family.run(pipe, 10), alone)


@pytest.mark.parametrize("offloaded", [False, True])
def test_a_patch_on_the_instance_is_mirrored_and_taken_back(offloaded: bool) -> None:
    with patched_pipe("wan, no retention", "instance", threshold=1e6) as (family, pipe):
        small = family.make_small()
        if offloaded:
            pipe.enable_model_cpu_offload(device="cpu")
        family.run(pipe, 10)
        before = snapshot(pipe, small, addresses=False)
        with fb.enable(pipe, small, "SSS", adapters=["adopted_teacache(mirror=True)"]) as blend:
            for _ in range(2):
                family.run(pipe, 10)
                assert outcomes(blend) == "c" + "r" * 8 + "c"
        assert snapshot(pipe, small, addresses=False) == before


def test_other_denoisers_with_the_same_marks_are_recognised() -> None:
    """CogVideoX, patched in the same manner: single state, guidance in one batch."""
    family = FAMILIES["cogvideox"]
    pipe = family.pipe()
    plain_forward = type(pipe.transformer).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.cnt in (0, self.num_steps - 1):
            self.previous_residual = plain_forward(self, *args, **kwargs)
        self.cnt += 1
        return self.previous_residual

    attributes = {"enable_teacache": True, "cnt": 0, "num_steps": 6, "rel_l1_thresh": 0.1, "previous_residual": None}
    with (
        patched_class(type(pipe.transformer), forward, attributes),
        fb.enable(pipe, family.make_small(), "L:2,S:2,L:2") as blend,
    ):
        family.run(pipe, 6)
        assert outcomes(blend, "cond_uncond") == "crcccc"


# -- refusals ------------------------------------------------------------------------------------------------------


def test_asked_for_where_there_is_none() -> None:
    family = FAMILIES["wan"]
    with pytest.raises(fb.StackError, match="no patched TeaCache is enabled on this WanPipeline"):
        fb.enable(family.pipe(), family.make_small(), adapters=["adopted_teacache"])


def test_switched_off_it_is_left_alone() -> None:
    with patched_pipe("wan", "class") as (family, pipe):
        pipe.transformer.enable_teacache = False
        with fb.enable(pipe, family.make_small(), "LLL") as blend:
            assert blend.adapters == ()


@pytest.mark.parametrize("other", ["teacache(threshold=0.1)", "first_block_cache(threshold=0.1)"])
def test_a_second_cache_beside_it_is_refused(other: str) -> None:
    with (
        patched_pipe("wan", "class") as (family, pipe),
        pytest.raises(fb.StackError, match=r"'adopted_teacache' and '.*' are two feature caches on one denoiser"),
    ):
        fb.enable(pipe, family.make_small(), adapters=[other])


def test_a_patch_that_is_no_method_cannot_be_mirrored() -> None:
    with patched_pipe("wan", "instance") as (family, pipe):
        bound = pipe.transformer.forward
        pipe.transformer.forward = lambda *args, **kwargs: bound(*args, **kwargs)
        with pytest.raises(fb.StackError, match="is no method of it"):
            fb.enable(pipe, family.make_small(), adapters=["adopted_teacache(mirror=True)"])
