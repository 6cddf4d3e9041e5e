"""Few-step samplers with solvers, caches and each other: what is declared, and what then happens."""

from __future__ import annotations

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.contract.stack import judge_adapters, judge_call, setting_of
from flowblend_plugins.contract.traits import Composition, Verdict
from flowblend_plugins.testing import generate, tiny_wan_denoiser, tiny_wan_pipeline

FOUR = "distilled(large='as_loaded', small='as_loaded', num_inference_steps=4)"
EIGHT = "distilled(large='as_loaded', small='as_loaded', num_inference_steps=8)"
SMALL = "distilled_small(small='as_loaded')"
CACHES = ("first_block_cache(threshold=0.05)", "taylorseer")


def declared(*specs: str, schedule: str = "LSL", **call: object) -> Verdict:
    from flowblend_plugins.manager import make_adapters, make_plugin_manager

    pipe, stages = tiny_wan_pipeline(), fb.StageSchedule.parse(schedule)
    adapters = make_adapters(make_plugin_manager(), specs)
    setting = setting_of(pipe, "transformer", stages, "recompute")
    verdict = judge_adapters(adapters, pipe, setting)
    return judge_call(adapters, setting, pipe, call) if call else verdict


@pytest.mark.parametrize("solver", ["unipc(num_inference_steps=20)", "dpmpp_2m", "flow_euler", "deis", "sa_solver"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_solver_is_refused(solver: str, swapped: bool) -> None:
    stack = (solver, FOUR) if swapped else (FOUR, solver)
    verdict = declared(*stack)
    assert verdict.composition is Composition.REFUSED
    name = solver.partition("(")[0]
    assert f"'distilled' prescribes the list of sigmas, and '{name}' would change it. Leave out '{name}'." in {
        str(reason) for reason in verdict.reasons
    }


@pytest.mark.parametrize(
    ("stack", "found"),
    [
        ((FOUR, EIGHT), "'distilled', asked for twice, each prescribe their own list of sigmas"),
        ((FOUR, "lightx2v"), "each prescribe their own list of sigmas"),
        ((FOUR, SMALL), "both take over the denoiser's weights"),
    ],
)
def test_two_that_want_the_same_are_refused(stack: tuple[str, str], found: str) -> None:
    verdict = declared(*stack)
    assert verdict.composition is Composition.REFUSED
    assert any(found in reason.found for reason in verdict.reasons)


@pytest.mark.parametrize("solver", ["unipc(num_inference_steps=20)", "dpmpp_2m", "flow_euler"])
def test_a_solver_beside_a_distilled_small_denoiser_composes(solver: str) -> None:
    assert declared(SMALL, solver).composition is Composition.COMPOSES


def test_guidance_in_the_call_against_guidance_off() -> None:
    verdict = declared(FOUR, guidance_scale=5.0, num_inference_steps=4)
    assert verdict.composition is Composition.REFUSED
    assert "Call the pipeline with guidance_scale=1.0." in [reason.remedy for reason in verdict.reasons]
    assert declared(FOUR, guidance_scale=1.0, num_inference_steps=4).composition is Composition.COMPOSES
    guided = FOUR.replace("=4)", "=4, guidance_scale=2.0)")
    assert declared(guided, guidance_scale=2.0, num_inference_steps=4).composition is Composition.COMPOSES


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_at_four_steps_is_declared_inert(cache: str) -> None:
    verdict = declared(FOUR, cache)
    assert verdict.composition is Composition.COMPOSES_WITH_RESET  # of the stack, which is not inert with its cache
    assert any("takes few steps, far apart" in reason.found for reason in verdict.of(Composition.INERT))
    assert declared(EIGHT, cache).composition is Composition.COMPOSES_WITH_RESET


@pytest.mark.parametrize("cache", CACHES)
def test_it_is_told_with_the_run_and_seen_in_it(cache: str) -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser(layers=2)
    with fb.enable(pipe, small, "LSL", adapters=[FOUR]):
        without = generate(pipe, None)
    with fb.enable(pipe, small, "LSL", adapters=[FOUR, cache]) as blend:
        assert blend.foresee().of(Composition.INERT)
        assert torch.equal(generate(pipe, None), without)
        assert "declared inert: 'distilled' takes few steps" in blend.trace.summary()


def test_where_it_is_not_inert_the_trace_says_so() -> None:
    """A threshold that lets anything pass reuses even here: the note stands beside what happened."""
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser(layers=2)
    with fb.enable(pipe, small, "LLL", adapters=[FOUR, "first_block_cache(threshold=100.0)"]) as blend:
        generate(pipe, None)
        last = blend.trace.generations[-1]
        assert last.num_forwards("L", "reuse") == 3
        assert any("declared inert" in note and "the trace shows it" in note for note in last.notes)
