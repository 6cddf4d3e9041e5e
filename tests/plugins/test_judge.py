"""Verdicts on stacks, from facts alone."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_plugins import AdapterTraits, StackError
from flowblend_plugins.contract.traits import Composition, Family, StackSetting, Verdict
from flowblend_plugins.contract.verdict import judge

WAN = StackSetting(
    denoiser_kind="transformer",
    denoiser_classes=("WanTransformer3DModel", "ModelMixin"),
    pipeline_classes=("WanPipeline", "DiffusionPipeline"),
    branches_called_apart=True,
)
SOLVER = AdapterTraits(family=Family.STEP_REDUCTION, changes_timesteps=True)
DISTILLED = AdapterTraits(family=Family.DISTILLED_SAMPLER, fixes_sigmas=True, needs_guidance_off=True)
BLOCK_CACHE = AdapterTraits(family=Family.FEATURE_CACHING, carries_step_state=True, wraps="blocks", min_useful_steps=6)
FORWARD_CACHE = AdapterTraits(family=Family.FEATURE_CACHING, carries_step_state=True, wraps="forward")


def verdict(*traits: AdapterTraits, setting: StackSetting = WAN, **facts: object) -> Verdict:
    names = [chr(ord("a") + index) for index in range(len(traits))]
    return judge(list(zip(names, traits, strict=True)), dataclasses.replace(setting, **facts))


def refusals(found: Verdict) -> list[str]:
    return [str(reason) for reason in found.reasons if reason.composition is Composition.REFUSED]


def test_nothing_stacked_composes() -> None:
    assert verdict().composition is Composition.COMPOSES


def test_a_solver_composes_with_a_change_of_denoiser() -> None:
    assert verdict(SOLVER).composition is Composition.COMPOSES


def test_a_solver_and_a_cache_compose_with_a_reset() -> None:
    found = verdict(SOLVER, BLOCK_CACHE)
    assert found.composition is Composition.COMPOSES_WITH_RESET
    assert "'b' keeps a denoiser's state from step to step" in str(found.reasons[0])


def test_without_a_change_of_denoiser_there_is_nothing_to_reset() -> None:
    assert verdict(BLOCK_CACHE, denoiser_changes=False).composition is Composition.COMPOSES


def test_keeping_state_is_as_asked_and_says_so() -> None:
    found = verdict(BLOCK_CACHE, reentry="keep")
    assert found.composition is Composition.COMPOSES
    assert 'reentry="keep"' in str(found.reasons[0])


@pytest.mark.parametrize(
    ("stack", "setting", "expected"),
    [
        ((SOLVER, SOLVER), {}, "'a' and 'b' both decide the sampler and its timesteps. Keep one of the two."),
        ((SOLVER, DISTILLED), {}, "'b' prescribes the list of sigmas, and 'a' would change it. Leave out 'a'."),
        ((DISTILLED, SOLVER), {}, "'a' prescribes the list of sigmas, and 'b' would change it. Leave out 'b'."),
        ((DISTILLED, DISTILLED), {}, "'a' and 'b' each prescribe their own list of sigmas. Keep one of the two."),
        ((BLOCK_CACHE, BLOCK_CACHE), {}, "both take over the denoiser's blocks"),
        ((BLOCK_CACHE, FORWARD_CACHE), {}, "two feature caches on one denoiser"),
        ((DISTILLED,), {"guidance": True}, "guidance is on. Call the pipeline with guidance_scale=1.0."),
        (
            (dataclasses.replace(BLOCK_CACHE, needs_uninterrupted_steps=True),),
            {},
            "is wrong when a denoiser misses steps, and this schedule changes denoisers",
        ),
        (
            (dataclasses.replace(BLOCK_CACHE, denoiser_kinds=frozenset({"unet"})),),
            {},
            "'a' runs on a unet, and the denoiser of WanPipeline is a transformer",
        ),
        (
            (dataclasses.replace(BLOCK_CACHE, denoiser_classes=frozenset({"LTXVideoTransformer3DModel", "X"})),),
            {},
            "'a' runs on LTXVideoTransformer3DModel or X, and the denoiser is a WanTransformer3DModel",
        ),
        (
            (dataclasses.replace(SOLVER, pipeline_classes=frozenset({"LTXPipeline"})),),
            {},
            "'a' runs on LTXPipeline, and this is a WanPipeline",
        ),
        (
            (dataclasses.replace(BLOCK_CACHE, tells_branches_apart=False),),
            {"guidance": True},
            "one branch would be answered from the other's state",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(
    stack: tuple[AdapterTraits, ...], setting: dict[str, object], expected: str
) -> None:
    found = verdict(*stack, **setting)
    assert found.composition is Composition.REFUSED
    assert len(refusals(found)) == 1
    assert expected in refusals(found)[0]
    with pytest.raises(StackError) as refused:
        found.refuse_if_it_must()
    assert str(refused.value) == refusals(found)[0]


@pytest.mark.parametrize(
    ("traits", "setting"),
    [
        (DISTILLED, {"guidance": False}),
        (DISTILLED, {"guidance": None}),
        (dataclasses.replace(BLOCK_CACHE, needs_uninterrupted_steps=True), {"denoiser_changes": False}),
        (dataclasses.replace(BLOCK_CACHE, tells_branches_apart=False), {"branches_called_apart": False}),
        (dataclasses.replace(BLOCK_CACHE, tells_branches_apart=False), {"guidance": False}),
        (dataclasses.replace(BLOCK_CACHE, tells_branches_apart=False), {"guidance": None}),
        (dataclasses.replace(SOLVER, pipeline_classes=frozenset({"DiffusionPipeline"})), {}),
        (dataclasses.replace(SOLVER, denoiser_classes=frozenset({"ModelMixin"})), {}),
    ],
)
def test_the_same_is_not_refused_where_the_fact_is_another(traits: AdapterTraits, setting: dict[str, object]) -> None:
    assert verdict(traits, **setting).composition is not Composition.REFUSED


def test_before_a_call_says_whether_it_guides_a_cache_of_one_state_is_allowed_with_its_condition() -> None:
    found = verdict(dataclasses.replace(BLOCK_CACHE, tells_branches_apart=False))
    assert any("right without guidance, and a call with it is refused" in str(reason) for reason in found.reasons)


def test_a_cache_whose_warm_up_takes_every_step_is_inert() -> None:
    found = verdict(BLOCK_CACHE, num_inference_steps=4)
    assert found.composition is Composition.INERT
    assert "changes nothing in fewer than 6 steps, and this generation has 4" in str(found.reasons[0])
    assert verdict(BLOCK_CACHE, num_inference_steps=6).composition is Composition.COMPOSES_WITH_RESET


def test_what_changes_the_small_denoiser_alone_is_inert_where_that_is_never_called() -> None:
    weights = AdapterTraits(family=Family.DISTILLED_SAMPLER, changes_only=frozenset({"S"}), wraps="weights")
    large_alone = dataclasses.replace(WAN, denoiser_changes=False, denoiser_order=("L",))
    found = verdict(weights, setting=large_alone)
    assert found.composition is Composition.INERT
    assert "changes denoiser S alone, and this schedule never calls it" in str(found.reasons[0])
    for others in (("S",), ("L", "S"), ()):
        assert verdict(weights, setting=large_alone, denoiser_order=others).composition is Composition.COMPOSES


@pytest.mark.parametrize(("order", "is_inert"), [("SL", True), ("L", True), ("LS", False), ("LMS", False), ("", False)])
def test_what_needs_one_denoiser_after_another_is_inert_without(order: str, is_inert: bool) -> None:
    correction = AdapterTraits(family=Family.BLENDING, needs_in_order=("L", "S"), wraps="answer")
    found = verdict(correction, denoiser_order=tuple(order))
    assert (found.composition is Composition.INERT) is is_inert
    assert ("calls denoiser S after L" in str(found.reasons[0])) is is_inert


def test_what_tells_branches_apart_needs_them_apart_and_guidance_on() -> None:
    routing = AdapterTraits(family=Family.BLENDING, needs_branches_apart=True, wraps="route")
    assert "once for both" in str(verdict(routing, branches_called_apart=False).reasons[0])
    assert "which call is which" in str(verdict(routing, branches_called_apart=None).reasons[0])
    for apart in (False, None):
        assert verdict(routing, branches_called_apart=apart).composition is Composition.REFUSED
    assert verdict(routing, branches_called_apart=True, guidance=False).composition is Composition.INERT
    assert verdict(routing, branches_called_apart=True, guidance=True).composition is Composition.COMPOSES


def test_velocities_of_which_one_is_guided_already_are_not_put_together() -> None:
    own = AdapterTraits(family=Family.DISTILLED_SAMPLER, own_guidance=True, wraps="weights")
    compared = AdapterTraits(family=Family.BLENDING, compares_denoisers=True, wraps="answer")
    found = verdict(own, compared)
    assert found.composition is Composition.REFUSED
    assert "'b' puts the velocities of two denoisers together, and with 'a'" in str(found.reasons[0])


def test_a_stack_is_inert_only_if_all_of_it_is() -> None:
    weights = AdapterTraits(family=Family.DISTILLED_SAMPLER, changes_only=frozenset({"S"}), wraps="weights")
    setting = dataclasses.replace(WAN, denoiser_changes=False, denoiser_order=("L",), num_inference_steps=4)
    assert verdict(weights, BLOCK_CACHE, setting=setting).composition is Composition.INERT
    found = verdict(weights, SOLVER, setting=setting)
    assert found.composition is Composition.COMPOSES
    assert str(found.reasons[0]) == "nothing disturbs 'b'."
    assert [reason.adapter for reason in found.of(Composition.INERT)] == ["a"]


def test_all_reasons_come_at_once_and_the_worst_first() -> None:
    found = verdict(SOLVER, DISTILLED, BLOCK_CACHE, BLOCK_CACHE, guidance=True, num_inference_steps=4)
    assert len(refusals(found)) == 3
    assert [reason.composition for reason in found.reasons[:3]] == [Composition.REFUSED] * 3
    assert any(reason.composition is Composition.INERT for reason in found.reasons)
    with pytest.raises(StackError, match=r"for 3 reasons: \(1\) .* \(2\) .* \(3\) ") as refused:
        found.refuse_if_it_must()
    assert "\n" not in str(refused.value)


TRAITS = st.builds(
    AdapterTraits,
    family=st.sampled_from(Family),
    changes_timesteps=st.booleans(),
    fixes_sigmas=st.booleans(),
    needs_guidance_off=st.booleans(),
    carries_step_state=st.booleans(),
    needs_uninterrupted_steps=st.booleans(),
    tells_branches_apart=st.booleans(),
    min_useful_steps=st.integers(0, 8),
    changes_only=st.sampled_from([frozenset(), frozenset({"S"})]),
    wraps=st.sampled_from([None, "blocks", "forward"]),
)
SETTINGS = st.builds(
    dataclasses.replace,
    st.just(WAN),
    denoiser_changes=st.booleans(),
    denoiser_order=st.sampled_from([(), ("L",), ("L", "S")]),
    reentry=st.sampled_from(["recompute", "keep"]),
    guidance=st.sampled_from([None, True, False]),
    branches_called_apart=st.sampled_from([None, True, False]),
    num_inference_steps=st.none() | st.integers(1, 8),
)


@given(st.lists(TRAITS, max_size=3), SETTINGS)
def test_order_does_not_change_a_verdict_and_there_is_always_a_reason(
    stack: list[AdapterTraits], setting: StackSetting
) -> None:
    verdicts = [verdict(*order, setting=setting) for order in itertools.permutations(stack)]
    assert len({found.composition for found in verdicts}) == 1
    assert len({len(refusals(found)) for found in verdicts}) == 1
    assert all(found.reasons and found.reasons[0].composition is found.composition for found in verdicts)


@given(st.lists(TRAITS, max_size=2), TRAITS, SETTINGS)
def test_stacking_more_never_takes_a_refusal_away(
    stack: list[AdapterTraits], further: AdapterTraits, setting: StackSetting
) -> None:
    assert set(refusals(verdict(*stack, setting=setting))) <= set(refusals(verdict(*stack, further, setting=setting)))


def test_guidance_techniques_stack_with_a_cache_and_not_with_each_other() -> None:
    skipping = AdapterTraits(family=Family.GUIDANCE)
    assert verdict(skipping, BLOCK_CACHE).composition is Composition.COMPOSES_WITH_RESET
    assert refusals(verdict(skipping, AdapterTraits(family=Family.GUIDANCE, wraps="answer"))) == [
        "'a' and 'b' both decide which guidance passes are computed. Keep one of the two."
    ]
    assert verdict(skipping, guidance=False).composition is Composition.INERT
    assert verdict(skipping, guidance=True).composition is Composition.COMPOSES
