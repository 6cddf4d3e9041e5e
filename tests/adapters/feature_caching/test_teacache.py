"""Our TeaCache against the method written by hand, and against what must never happen under a router."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_adapters.feature_caching.teacache import estimates
from flowblend_adapters.feature_caching.teacache.adapter import TeaCache
from flowblend_adapters.feature_caching.teacache.fits import Fit, describe_denoiser, fits_to_json
from flowblend_adapters.feature_caching.teacache.published import (
    MODULATED_INPUT,
    PROJECTED_TIME,
    TIME,
    Estimate,
    published_models,
)
from flowblend_adapters.feature_caching.teacache.rule import Polynomial, SkipRule
from flowblend_adapters.feature_caching.teacache.state import DenoiserCache
from flowblend_plugins.schedule import Stage
from flowblend_plugins.step import StepContext
from flowblend_plugins.testing import (
    AdapterContract,
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from flowblend_plugins.testing.snapshot import snapshot
from tests.adapters.feature_caching.teacache_by_hand import IDENTITY, patched, patched_class
from tests.exactness.pipelines import FAMILIES, VIDEO_TO_VIDEO, Family
from tests.exactness.test_undo import Stumble, stumble_at_call


def fit_for(denoiser: Any, signal: str, **changes: Any) -> Fit:
    estimate = Estimate(changes.pop("polynomial", Polynomial(IDENTITY, (0.0, 100.0))), slow=0.2, fast=0.4)
    return Fit(describe_denoiser(denoiser) | changes, signal, estimate, 1.0, 10, (10,))


def fits_for_tiny_denoisers() -> tuple[Fit, ...]:
    """The estimate is the signal's own change."""
    wan = [
        d for family in ("wan", "wan-i2v") for d in (FAMILIES[family].pipe().transformer, FAMILIES[family].make_small())
    ]
    ltx = [FAMILIES["ltx"].pipe().transformer, FAMILIES["ltx"].make_small()]
    return (
        *(fit_for(denoiser, signal) for denoiser in wan for signal in (TIME, PROJECTED_TIME)),
        *(fit_for(denoiser, MODULATED_INPUT) for denoiser in ltx),
    )


@pytest.fixture(autouse=True)
def _tiny_denoisers_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = fits_for_tiny_denoisers()
    monkeypatch.setattr(estimates, "shipped_fits", lambda: fits)


# (family, options, retention): thresholds at which some of ten steps are reused and some are not
SETTINGS = {
    "wan": ("wan", "threshold=0.65", 0.65, True),
    "wan, no retention": ("wan", "threshold=1.2, retention=False", 1.2, False),
    "wan-i2v": ("wan-i2v", "threshold=0.65", 0.65, True),
    "ltx": ("ltx", "threshold=0.15", 0.15, True),
}
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def by_hand(setting: str, num_inference_steps: int = 10, **call: Any) -> torch.Tensor:
    name, _, threshold, retention = SETTINGS[setting]
    family = FAMILIES[name]
    with patched_class(*patched(name, threshold, num_inference_steps, retention)):
        return family.run(family.pipe(), num_inference_steps, **call)


def enabled(setting: str, schedule: str, pipe: Any = None, **options: Any) -> tuple[Family, Any, fb.Blend]:
    name, text, _, _ = SETTINGS[setting]
    family = FAMILIES[name]
    pipe = pipe or family.pipe()
    further = "".join(f", {option}={value!r}" for option, value in options.items() if option != "reentry")
    reentry = options.get("reentry", "recompute")
    adapter = f"teacache({text}{further})"
    return family, pipe, fb.enable(pipe, family.make_small(), schedule, adapters=[adapter], reentry=reentry)


def outcomes(blend: fb.Blend, branch: str = "cond") -> str:
    """One letter a step: computed or reused."""
    assert blend.trace.last is not None
    calls = [c for c in blend.trace.last.calls if c.step.branch in (branch, "cond_uncond")]
    return "".join(call.outcome[0] for call in calls)


class TestTeaCacheOnWan(AdapterContract):
    spec = "teacache(threshold=0.65)"
    wrong_specs = (
        "teacache(threshold=-0.1)",
        "teacache(threshold=1e999)",
        "teacache(threshold='0.1')",
        "teacache(thresh=0.1)",
        "teacache(warmup_steps=-1)",
        "teacache(denoisers='')",
        "teacache(retention=1)",
        "teacache(coefficients='no such file.json')",
    )

    def by_hand(self, pipe: Any) -> torch.Tensor:
        with patched_class(*patched("wan", 0.65, 10)):
            return generate(pipe)


class TestTeaCacheOnLTX(AdapterContract):
    spec = "teacache(threshold=0.15)"
    wrong_specs = ("teacache(threshold=True)",)
    make_pipeline = staticmethod(tiny_ltx_pipeline)
    make_small = staticmethod(tiny_ltx_denoiser)

    def by_hand(self, pipe: Any) -> torch.Tensor:
        with patched_class(*patched("ltx", 0.15, 10)):
            return generate(pipe)


@every_setting
def test_lll_is_the_method_by_hand_and_the_trace_says_what_was_reused(setting: str) -> None:
    expected = by_hand(setting)
    family, pipe, blend = enabled(setting, "LLL")
    assert torch.equal(family.run(pipe, 10), expected)
    assert {"c", "r"} == set(outcomes(blend))
    plain = family.run(family.pipe(), 10)
    blend.disable()
    assert torch.equal(family.run(pipe, 10), plain)
    assert not torch.equal(expected, plain)


@pytest.mark.parametrize("setting", ["wan", "ltx"])
def test_a_batch_is_the_method_by_hand(setting: str) -> None:
    expected = by_hand(setting, batch=2)
    family, pipe, _ = enabled(setting, "LLL")
    assert torch.equal(family.run(pipe, 10, batch=2), expected)


@every_setting
def test_threshold_zero_is_no_cache(setting: str) -> None:
    family = FAMILIES[SETTINGS[setting][0]]
    retention = SETTINGS[setting][3]
    plain, cached, small = family.pipe(), family.pipe(), family.make_small()
    adapter = TeaCache(threshold=0.0, retention=retention)
    with fb.enable(plain, small), fb.enable(cached, family.make_small(), adapters=[adapter]) as blend:
        assert torch.equal(family.run(cached, 10), family.run(plain, 10))
        assert set(outcomes(blend)) == {"c"}


@contextmanager
def recorded(denoiser: torch.nn.Module) -> Iterator[list[tuple[dict[str, Any], torch.Tensor]]]:
    """Keyword arguments and outputs of all calls of the denoiser."""
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []
    handle = denoiser.register_forward_hook(lambda m, a, kw, out: calls.append((kw, out[0].clone())), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@every_setting
@pytest.mark.parametrize("reentry", ["recompute", "keep"])
def test_the_first_large_step_after_the_small_stage_is_computed_afresh(setting: str, reentry: str) -> None:
    """With a threshold of a million every step is reused that may be, so a stale residual would show."""
    family = FAMILIES[SETTINGS[setting][0]]
    pipe, uncached = family.pipe(), family.pipe().transformer
    adapter = TeaCache(threshold=1e6, retention=False)
    with (
        fb.enable(pipe, family.make_small(), "L:3,S:2,L:3", adapters=[adapter], reentry=reentry) as blend,
        recorded(pipe.transformer) as calls,
    ):
        first = family.run(pipe, 8)
        per_step = len(calls) // 6
        with torch.no_grad():
            is_fresh = [torch.equal(out, uncached(**kw)[0]) for kw, out in calls[3 * per_step : 4 * per_step]]
        assert is_fresh == [reentry == "recompute"] * per_step
        # First and last step are forced; the first of each stage has nothing to reuse.
        assert outcomes(blend) == ("crrcrcrc" if reentry == "recompute" else "crrcrrrc")
        assert torch.equal(family.run(pipe, 8), first)


@pytest.mark.parametrize("setting", ["wan", "ltx"])
def test_a_reused_call_costs_what_stands_outside_the_blocks(setting: str) -> None:
    """Beside the same denoiser with no blocks at all."""
    family, pipe, blend = enabled(setting, "LLL")
    family.run(pipe, 10)
    blend.disable()
    blockless = family.pipe()
    own = blockless.transformer
    blockless.register_modules(transformer=type(own).from_config({**own.config, "num_layers": 0}))
    with fb.enable(blockless, schedule="LLL") as bare, fb.enable(family.pipe(), schedule="LLL") as whole:
        family.run(blockless, 10)
        family.run(whole.pipeline, 10)
        assert blend.trace.last is not None
        share = sum(call.outcome == "reuse" for call in blend.trace.last.calls) / len(blend.trace.last.calls)
        expected = share * bare.trace.flops().full + (1 - share) * whole.trace.flops().full
        assert blend.trace.flops().full == pytest.approx(expected)
        assert 0 < bare.trace.flops().full < blend.trace.flops().full < whole.trace.flops().full


def test_what_is_reported_is_what_happened() -> None:
    """Blocks that really ran, counted by hooks on them, beside the trace."""
    family, pipe, blend = enabled("wan", "LSL")
    runs: list[int] = []
    for letter in "LS":
        blend.denoisers[letter].blocks[-1].attn1.register_forward_hook(lambda *_: runs.append(1))
    family.run(pipe, 10)
    assert blend.trace.last is not None
    assert len(runs) == sum(call.outcome == "compute" for call in blend.trace.last.calls) < 20


@pytest.mark.parametrize("family", [FAMILIES["wan"], VIDEO_TO_VIDEO], ids=lambda f: f.name)
def test_cond_and_uncond_never_mix(family: Family) -> None:
    """Wan's video-to-video pipeline names no branch at all. Every reuse adds the residual of its own text."""
    pipe = family.pipe()
    entries: list[torch.Tensor] = []
    ends: list[torch.Tensor] = []
    texts: list[torch.Tensor] = []
    with fb.enable(pipe, family.make_small(), "LLL", adapters=[TeaCache(threshold=1e6, retention=False)]) as blend:
        patch = pipe.transformer.patch_embedding.register_forward_hook(
            lambda m, a, out: entries.append(out.flatten(2).transpose(1, 2))
        )
        end = pipe.transformer.norm_out.register_forward_pre_hook(lambda m, a: ends.append(a[0]))
        head = pipe.transformer.register_forward_pre_hook(
            lambda m, a, kw: texts.append(kw["encoder_hidden_states"]), with_kwargs=True
        )
        family.run(pipe, 8)
        for handle in (patch, end, head):
            handle.remove()
        assert blend.trace.last is not None
        reused = [call.outcome == "reuse" for call in blend.trace.last.calls]
    assert sum(reused) >= 4
    made = {}
    for entry, last, prompt, is_reused in zip(entries, ends, texts, reused, strict=True):
        key = prompt.sum().item()
        if is_reused:
            assert torch.equal(last, entry + made[key])
        else:
            made[key] = last - entry
    assert len(made) == 2
    first, second = made.values()
    assert not torch.equal(first, second)


def test_warm_up_is_counted_in_steps_of_each_stage() -> None:
    adapter = TeaCache(threshold=1e6, retention=False, warmup_steps=2)
    family = FAMILIES["wan"]
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "L:4,S:4,L:4", adapters=[adapter]) as blend:
        family.run(pipe, 12)
        assert outcomes(blend) == "ccrrccrrccrc"


@pytest.mark.parametrize(("denoisers", "expected"), [("L", "crrccccrrc"), ("S", "ccccrrcccc"), ("LS", "crrcrrcrrc")])
def test_it_is_put_on_the_denoisers_asked_for(denoisers: str, expected: str) -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    adapter = TeaCache(threshold=1e6, retention=False, denoisers=denoisers)
    with fb.enable(pipe, family.make_small(), "L:3,S:3,L:4", adapters=[adapter]) as blend:
        family.run(pipe, 10)
        assert outcomes(blend) == expected


def test_video_to_video_begins_with_a_computed_step() -> None:
    pipe = VIDEO_TO_VIDEO.pipe()
    with fb.enable(pipe, tiny_wan_denoiser(), "LLL", adapters=[TeaCache(threshold=1e6)]) as blend:
        VIDEO_TO_VIDEO.run(pipe, 12)
        assert blend.trace.last is not None
        calls = blend.trace.last.calls
        assert calls[0].step.step_index > 0
        # Retention computes the first five of the steps that there are, two calls each.
        assert [call.outcome for call in calls[:10]] == ["compute"] * 10
        assert {call.outcome for call in calls[10:]} == {"reuse"}


@pytest.mark.parametrize("setting", ["wan", "ltx"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_model_offloading(setting: str, when: str) -> None:
    expected = by_hand(setting)
    pipe = FAMILIES[SETTINGS[setting][0]].pipe()
    if when == "before":
        pipe.enable_model_cpu_offload(device="cpu")
    family, pipe, blend = enabled(setting, "LLL", pipe)
    if when == "after":
        pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(family.run(pipe, 10), expected)
    assert {"c", "r"} == set(outcomes(blend))


@pytest.mark.parametrize("setting", ["wan", "ltx"])
def test_group_offloading(setting: str) -> None:
    expected = by_hand(setting)
    pipe = FAMILIES[SETTINGS[setting][0]].pipe()
    cpu = torch.device("cpu")
    pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    family, pipe, _ = enabled(setting, "LLL", pipe)
    assert torch.equal(family.run(pipe, 10), expected)


@pytest.mark.parametrize(
    ("setting", "blocks_only"), [("wan", True), ("ltx", True), ("wan, no retention", False), ("ltx", False)]
)
def test_compiled_denoisers(setting: str, blocks_only: bool) -> None:
    expected = by_hand(setting)
    torch.compiler.reset()
    pipe = FAMILIES[SETTINGS[setting][0]].pipe()
    compile_it = pipe.transformer.compile_repeated_blocks if blocks_only else pipe.transformer.compile
    compile_it(backend="eager", dynamic=False)
    family, pipe, blend = enabled(setting, "LLL", pipe)
    assert torch.equal(family.run(pipe, 10), expected)
    assert {"c", "r"} == set(outcomes(blend))
    torch.compiler.reset()


@pytest.mark.parametrize("setting", ["wan, no retention", "ltx"])
def test_an_exception_in_the_middle_of_the_blocks_leaves_nothing(setting: str) -> None:
    family, pipe, blend = enabled(setting, "LSL")
    small = blend.denoisers["S"]
    first = family.run(pipe, 10)
    for letter in "LS":
        handle = stumble_at_call(blend.denoisers[letter], 2)
        with pytest.raises(Stumble):
            family.run(pipe, 10)
        handle.remove()
        assert torch.equal(family.run(pipe, 10), first)
    blend.disable()
    family.run(pipe, 10)
    fresh = family.pipe()
    family.run(fresh, 10)
    now, then = (
        {k: v for k, v in snapshot(p, s, addresses=False).items() if isinstance(v, (str, list, dict))}
        for p, s in ((pipe, small), (fresh, family.make_small()))
    )
    assert now == then


@every_setting
def test_disable_leaves_no_trace(setting: str) -> None:
    family = FAMILIES[SETTINGS[setting][0]]
    pipe = family.pipe()
    family.run(pipe, 10)
    before = snapshot(pipe)
    family, pipe, blend = enabled(setting, "LSL", pipe)
    small = blend.denoisers["S"]
    assert snapshot(pipe) != before
    family.run(pipe, 10)
    blend.disable()
    assert snapshot(pipe) == before
    assert type(small.get_submodule("blocks" if "wan" in setting else "transformer_blocks")[0]).__call__ is (
        torch.nn.Module.__call__
    )


def test_a_call_outside_a_generation_is_computed_plainly_and_keeps_nothing() -> None:
    family, pipe, blend = enabled("wan", "LLL")
    plain = family.pipe().transformer
    call = {
        "hidden_states": torch.randn(1, 4, 3, 4, 4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, 16),
    }

    def meddle(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            assert torch.equal(pipe.transformer(**call)[0], plain(**call)[0])
        return tensors

    assert torch.equal(family.run(pipe, 10, callback_on_step_end=meddle), by_hand("wan"))
    assert "r" in outcomes(blend)


def test_a_batch_that_changes_is_computed() -> None:
    """Where guidance pauses in a batch of both branches, the residual of two is no residual of one."""
    denoiser = tiny_wan_pipeline().transformer
    trace = fb.Trace({"L": denoiser}, fb.StageSchedule.parse("LLL")).reporter
    rule = SkipRule(Polynomial(IDENTITY), threshold=1e6)
    cache = DenoiserCache(denoiser, PROJECTED_TIME, rule, trace)
    decisions = []
    for index, batch in enumerate([2, 2, 1, 1, 2]):
        trace.step = StepContext(index, 10, None, None, Stage.EARLY, "L", "cond_uncond", 0)
        if index == 0:
            cache.enter(trace.step, 0)
        temb = torch.full((1, 6, 24), 1.0 + index)
        decision = cache.entering(denoiser.blocks[0], {"hidden_states": torch.zeros(batch, 4, 24), "temb": temb}, None)
        decisions.append(decision is not True)
        if decision is True:
            cache.computed(torch.ones(batch, 4, 24))
    assert decisions == [False, True, False, True, False]


# -- coefficients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "signal", "low", "high"),
    [
        ("wan_t2v_14b", PROJECTED_TIME, 0.0077, 0.0816),
        ("wan_t2v_1_3b", PROJECTED_TIME, 0.0043, 0.1019),
        ("wan_t2v_14b", TIME, 0.130, 0.406),
    ],
)
def test_a_published_polynomial_says_nothing_off_its_domain(model: str, signal: str, low: float, high: float) -> None:
    published = next(m for m in published_models() if m.name == model)
    polynomial = published.estimates[signal].polynomial
    assert polynomial.domain == pytest.approx((low, high), abs=6e-5 if low < 0.1 else 6e-4)
    assert polynomial((low + high) / 2) == pytest.approx(
        sum(c * ((low + high) / 2) ** (4 - i) for i, c in enumerate(polynomial.coefficients))
    )
    for change in (low - 0.001, high + 0.001, 5.0, math.nan, math.inf):
        assert polynomial(change) is None


def test_off_its_domain_a_step_is_computed() -> None:
    """A gap between steps makes a change the fit never saw; upstream would add a negative estimate and reuse on."""
    family = FAMILIES["wan"]
    denoisers = family.pipe().transformer, family.make_small()
    dips = Polynomial((0.0, 0.0, 0.0, 1.0, -0.5), (0.0, 100.0))  # negative for changes under a half
    fits = tuple(fit_for(denoiser, TIME, polynomial=dips) for denoiser in denoisers)
    pipe = family.pipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "shipped_fits", lambda: fits)
        with fb.enable(pipe, denoisers[1], "LLL", adapters=[TeaCache(threshold=1e6, retention=False)]) as blend:
            family.run(pipe, 10)
            assert outcomes(blend) == "cc" + "r" * 7 + "c"  # the first change alone is below a half


PUBLISHED = [
    (tiny_wan_denoiser, {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30}, "wan_t2v_1_3b"),
    (tiny_wan_denoiser, {"num_attention_heads": 40, "attention_head_dim": 128, "num_layers": 40}, "wan_t2v_14b"),
    (tiny_ltx_denoiser, {"num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 28}, "ltx_2b"),
]


@pytest.mark.parametrize(("make", "config", "name"), PUBLISHED, ids=lambda v: v if isinstance(v, str) else "")
def test_published_models_are_recognised_by_their_config(make: Callable[[], Any], config: Any, name: str) -> None:
    denoiser = make()
    denoiser.register_to_config(**config)
    published = next(model for model in published_models() if model.name == name)
    for signal, estimate in published.estimates.items():
        assert estimates.estimate_for("L", denoiser, signal, None) == estimate
        assert estimates.threshold_for("L", estimate, None) == estimate.slow


def test_two_published_models_of_one_config_are_told_apart_by_their_id_or_asked_for() -> None:
    denoiser = tiny_wan_denoiser()
    denoiser.register_to_config(num_attention_heads=40, attention_head_dim=128, num_layers=40, image_dim=1280)
    with pytest.raises(fb.StackError, match='Say which: coefficients="wan_i2v_14b_480p" or coefficients="wan_i2v'):
        estimates.estimate_for("L", denoiser, TIME, None)
    by_name = estimates.estimate_for("L", denoiser, TIME, "wan_i2v_14b_720p")
    denoiser.register_to_config(_name_or_path="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers")
    assert estimates.estimate_for("L", denoiser, TIME, None) == by_name
    with pytest.raises(fb.StackError, match="no threshold was published"):
        estimates.threshold_for("L", by_name, None)


def test_an_unknown_size_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "shipped_fits", lambda: ())
    pipe = tiny_wan_pipeline()
    before = snapshot(pipe)
    with pytest.raises(fb.StackError, match=r"denoiser L .* 24 wide, 2 layers.*flowblend calibrate teacache"):
        fb.enable(pipe, tiny_wan_denoiser(), adapters=["teacache"])
    assert snapshot(pipe) == before


def test_a_file_of_fits_is_used_for_the_denoiser_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_hand("wan")
    family = FAMILIES["wan"]
    pipe, small = family.pipe(), family.make_small()
    fits = [fit_for(denoiser, PROJECTED_TIME) for denoiser in (pipe.transformer, small)]
    path = tmp_path / "fits.json"
    path.write_text(json.dumps(fits_to_json(fits)))
    monkeypatch.setattr(estimates, "shipped_fits", lambda: ())
    with fb.enable(pipe, small, "LLL", adapters=[f"teacache(threshold=0.65, coefficients={str(path)!r})"]):
        assert torch.equal(family.run(pipe, 10), expected)
    with pytest.raises(fb.StackError, match="signal 'time'"):
        fb.enable(pipe, small, "LLL", adapters=[f"teacache(retention=False, coefficients={str(path)!r})"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not json", "is no JSON"),
        ("{}", "was not written by this version"),
        ('{"api_version": 1, "cache": "teacache", "fits": [{}]}', "is damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "fits.json"
    path.write_text(text)
    with pytest.raises(fb.AdapterError, match=complaint):
        fb.enable(tiny_wan_pipeline(), tiny_wan_denoiser(), adapters=[f"teacache(coefficients={str(path)!r})"])


# -- what it cannot run on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cogvideox", "mochi"])
def test_other_denoisers_are_refused(name: str) -> None:
    family = FAMILIES[name]
    with pytest.raises(fb.StackError, match="'teacache' runs on LTXVideoTransformer3DModel or WanTransformer3DModel"):
        fb.enable(family.pipe(), family.make_small(), adapters=["teacache"])


def test_unknown_letters_are_refused() -> None:
    pipe = tiny_wan_pipeline()
    with pytest.raises(fb.StackError, match="names M, and the denoisers of this blend are L, S"):
        fb.enable(pipe, tiny_wan_denoiser(), adapters=["teacache(denoisers='LM')"])


def test_blocks_replaced_between_generations_are_cached_as_if_they_had_been_there() -> None:
    family, pipe, _ = enabled("wan", "LLL")
    family.run(pipe, 10)
    pipe.transformer.blocks[0] = copy.deepcopy(family.pipe().transformer.blocks[1])
    replaced = family.run(pipe, 10)
    fresh = family.pipe()
    fresh.transformer.blocks[0] = copy.deepcopy(fresh.transformer.blocks[1])
    assert not torch.equal(replaced, family.run(family.pipe(), 10))
    _, fresh, _ = enabled("wan", "LLL", fresh)
    assert torch.equal(replaced, family.run(fresh, 10))


def test_blocks_replaced_during_a_generation_are_noticed() -> None:
    family, pipe, _ = enabled("wan", "LSL")

    def replace(pipe: Any, step_index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step_index == 4:  # the small denoiser answers
            pipe.transformer.blocks[0] = family.pipe().transformer.blocks[0]
        return tensors

    with pytest.raises(fb.RoutingError, match="blocks of denoiser L were replaced"):
        family.run(pipe, 10, callback_on_step_end=replace)
