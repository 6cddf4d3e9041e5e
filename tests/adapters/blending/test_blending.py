"""The adapters that correct, recall and split, against the same formulas by hand, and against plain blending."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.testing import AdapterContract, generate, tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.blending.by_hand import ByHand, corrected, forecast, refreshed
from tests.exactness.oracles import wan_by_hand
from tests.exactness.pipelines import FAMILIES, STABLE_DIFFUSION

STEPS = {"num_inference_steps": 10}
LETTERS = "LLLLSSSSLL"
KINDS = {"wan": FAMILIES["wan"], "ltx": FAMILIES["ltx"], "unet": STABLE_DIFFUSION}


class BlendingContract(AdapterContract):
    """These change nothing without the small denoiser, so what others do alone they do on LSL."""

    call: ClassVar[dict[str, Any]] = STEPS
    answer: ClassVar[Any]

    def enabled(self, pipe: Any, schedule: str) -> fb.Blend:
        return super().enabled(pipe, "LSL" if schedule == "LLL" else schedule)

    def by_hand(self, pipe: Any) -> torch.Tensor:
        return ByHand(pipe, self.make_small(), LETTERS, type(self).answer).generate(**STEPS)


class TestCorrected(BlendingContract):
    spec = "corrected(damping=0.5)"
    never_spec = "corrected(strength=0)"
    wrong_specs = (
        "corrected(strength=-1)",
        "corrected(damping='a')",
        "corrected(decay=1)",
        "corrected(extrapolate=-0.1)",
    )
    answer = staticmethod(corrected(1.0, 0.5))


class TestExtrapolated(BlendingContract):
    spec = "corrected(strength=0.8, extrapolate=0.5)"
    wrong_specs = ("corrected(extrapolate=1e999)",)
    answer = staticmethod(corrected(0.8, 1.0, 0.5))


class TestGuidedRefresh(BlendingContract):
    spec = "guided_refresh(threshold=0.15)"
    wrong_specs = ("guided_refresh", "guided_refresh(threshold=-1)", "guided_refresh(threshold=1, damping=-1)")
    answer = staticmethod(refreshed(0.15))

    def test_the_large_denoiser_is_recalled_for_some_of_the_steps(self) -> None:
        pipe = self.make_pipeline()
        with self.enabled(pipe, "LSL") as blend:
            generate(pipe, **STEPS)
        assert blend.trace.last is not None
        answers = [call for call in blend.trace.last.calls if not call.is_extra and call.step.branch == "cond"]
        assert [call.step.step_index for call in answers] == list(range(10))
        middle = [call.outcome for call in answers[4:8]]
        assert {"compute", "predict"} == set(middle), "choose a threshold that the test can see"


class TestForecast(BlendingContract):
    spec = "forecast(recall_every=3, trend=0.8)"
    wrong_specs = (
        "forecast(recall_every=-1)",
        "forecast(trend=-0.1)",
        "forecast(trend=1e999)",
        "forecast(recall_every=1.5)",
    )
    answer = staticmethod(forecast(3, 0.8))

    def test_small_steps_cost_nothing_and_some_are_recalled(self) -> None:
        pipe = self.make_pipeline()
        with self.enabled(pipe, "LSL") as blend:
            generate(pipe, **STEPS)
            counted = blend.trace.flops()
        assert blend.trace.last is not None
        calls = [call for call in blend.trace.last.calls if call.step.branch == "cond"]
        assert [call.outcome for call in calls[4:8]] == ["predict", "predict", "compute", "predict"]
        assert counted.full_fraction_of_large == pytest.approx(0.7)


class TestBranchRouting(AdapterContract):
    spec = "branch_routing(first_step=2)"
    wrong_specs = ("branch_routing(first_step=-1)", "branch_routing(refresh_every=-2)", "branch_routing(branch='cond')")
    call: ClassVar[dict[str, Any]] = STEPS

    def by_hand(self, pipe: Any) -> torch.Tensor:
        small, large = self.make_small(), pipe.transformer.forward
        num_calls = 0

        def forward(**kwargs: Any) -> Any:
            nonlocal num_calls
            index, is_uncond = divmod(num_calls, 2)
            num_calls += 1
            return (small if is_uncond and index >= 2 else large)(**kwargs)

        pipe.transformer.forward = forward
        try:
            return generate(pipe, **STEPS)
        finally:
            del pipe.transformer.forward


def latents(schedule: str, *adapters: str, family: str = "wan", **changes: Any) -> torch.Tensor:
    made = KINDS[family]
    pipe, small = made.pipe(), made.make_small()
    with fb.enable(pipe, small, schedule, adapters=list(adapters), **changes):
        return made.run(pipe, 10)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("schedule", ["LLL", "SSS", "SLL"])
def test_where_no_small_step_follows_a_large_one_nothing_changes(family: str, schedule: str) -> None:
    plain = latents(schedule, family=family)
    assert torch.equal(latents(schedule, "corrected", family=family), plain)
    assert torch.equal(latents(schedule, "forecast", family=family), plain)
    assert torch.equal(latents(schedule, "guided_refresh(threshold=0.0)", family=family), plain)


@pytest.mark.parametrize("family", KINDS)
def test_the_ends_of_every_option_are_what_they_must_be(family: str) -> None:
    plain, once = latents("LSL", family=family), latents("LSL", "corrected", family=family)
    assert not torch.equal(once, plain)
    assert torch.equal(latents("LSL", "corrected(strength=0)", family=family), plain)
    assert torch.equal(latents("LSL", "guided_refresh(threshold=1e999)", family=family), once)
    assert torch.equal(latents("LSL", "guided_refresh(threshold=1e999, strength=0)", family=family), plain)
    large = latents("LLL", family=family)
    assert torch.equal(latents("LSL", "guided_refresh(threshold=0)", family=family), large), "recalled at every step"
    assert torch.equal(latents("LSL", "forecast(recall_every=1)", family=family), large), "likewise"


def test_correcting_each_branch_is_correcting_after_guidance() -> None:
    """Guidance is linear. By hand after guidance, to rounding."""
    family = FAMILIES["wan"]
    pipe, small = family.pipe(), family.make_small()
    large, scheduler, scale = pipe.transformer, family.pipe().scheduler, 5.0
    given = family.arguments(1)
    text = {name: given[name] for name in ("prompt_embeds", "negative_prompt_embeds")}
    kept: dict[str, Any] = {}

    def guided(denoiser: Any, inputs: dict[str, Any]) -> torch.Tensor:
        cond, uncond = (denoiser(**inputs, encoder_hidden_states=one)[0] for one in text.values())
        return uncond + scale * (cond - uncond)

    class Guided(torch.nn.Module):
        """Answers both branches with what guidance would make of them."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

        def forward(self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
            inputs = {"hidden_states": hidden_states, "timestep": timestep}
            if LETTERS[self.index] == "L":
                velocity = guided(large, inputs)
                kept.update(index=self.index, residual=velocity - guided(small, inputs))
            else:
                weight = float(scheduler.sigmas[self.index]) / float(scheduler.sigmas[kept["index"]])
                velocity = guided(small, inputs) + weight * kept["residual"]
            return type("Output", (), {"sample": velocity})

    expected = wan_by_hand(scheduler, lambda index, branch: Guided(index), text, 10, scale)
    with fb.enable(pipe, small, "LSL", adapters=["corrected"]):
        found = family.run(pipe, 10, guidance_scale=scale)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(latents("LSL"), expected, atol=1e-2), "the correction is not too small to be seen"


@pytest.mark.parametrize("cache", ["first_block_cache(threshold=0)", "sea_cache(threshold=0)"])
@pytest.mark.parametrize("adapter", ["corrected", "guided_refresh(threshold=0.15)"])
def test_with_a_cache_that_never_reuses_it_is_what_it_is_alone(cache: str, adapter: str) -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser(layers=2)
    with fb.enable(pipe, small, "LSL", adapters=[adapter]):
        alone = generate(pipe, **STEPS)
    with fb.enable(pipe, small, "LSL", adapters=[adapter, cache]):
        assert torch.equal(generate(pipe, **STEPS), alone)


def test_a_cache_that_reuses_starts_every_generation_afresh() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser(layers=2)
    with fb.enable(pipe, small, "L:3,S:5,L:2", adapters=["corrected", "first_block_cache(threshold=0.9)"]) as blend:
        first = generate(pipe, **STEPS)
        assert torch.equal(generate(pipe, **STEPS), first)
    assert blend.trace.last is not None
    assert any(call.outcome == "reuse" for call in blend.trace.last.calls)


def test_extra_forwards_are_seen_and_paid_for() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    with fb.enable(pipe, small, "LSL") as blend:
        generate(pipe, **STEPS)
        plain = blend.trace.flops()
    with fb.enable(pipe, small, "LSL", adapters=["corrected"]) as blend:
        generate(pipe, **STEPS)
        calls = blend.trace.generations[-1].calls
        extra = [call for call in calls if call.is_extra]
        assert [(call.step.step_index, call.step.denoiser, call.step.branch) for call in extra] == [
            (3, "S", "cond"), (3, "S", "uncond"),
        ]  # fmt: skip
        assert [call.outcome for call in calls if not call.is_extra] == ["compute"] * 8 + ["predict"] * 8 + [
            "compute"
        ] * 4
        once = blend.trace.flops()
    one_large_step = plain.full / plain.full_fraction_of_large / 10
    one_small_step = (plain.full - 6 * one_large_step) / 4
    assert once.full == pytest.approx(plain.full + one_small_step)
    assert "predict" in blend.trace.summary()


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        (["corrected", "guided_refresh(threshold=1)"], "both take over the denoiser's answer"),
        (["corrected", "distilled_small"], "guided already"),
        (["forecast", "guided_refresh(threshold=1)"], "both take over the denoiser's answer"),
        (["branch_routing", "distilled_small"], "guided already"),
    ],
)
def test_what_cannot_be_stacked_is_refused(adapters: list[str], said: str) -> None:
    from flowblend_compat_matrix.reference import load_pair

    pair = load_pair()
    with pytest.raises(fb.StackError, match=said):
        fb.enable(pair.pipeline, pair.small, "LSL", adapters=adapters)


def test_branch_routing_needs_two_calls_and_a_small_denoiser() -> None:
    family = FAMILIES["ltx"]
    with pytest.raises(fb.StackError, match="once for both"):
        fb.enable(family.pipe(), family.make_small(), "LLL", adapters=["branch_routing"])
    with pytest.raises(fb.AdapterError, match="needs a small denoiser"):
        fb.enable(tiny_wan_pipeline(), None, "LLL", adapters=["branch_routing"])


def test_verdicts_before_anything_runs() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    for adapter, schedule, said in (
        ("corrected", "SLL", "S after L"),
        ("forecast", "SLL", "S after L"),
        ("guided_refresh(threshold=1)", "LLL", "S after L"),
        ("branch_routing", "SSS", "denoiser L alone"),
    ):
        with fb.enable(pipe, small, schedule, adapters=[adapter]) as blend:
            verdict = blend.foresee(num_inference_steps=10)
            assert verdict.composition.value == "inert"
            assert said in str(verdict.reasons[0])
