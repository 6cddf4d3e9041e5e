"""Every hook is called when its documentation says, with what it says. Each has a test here that bears its name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_adapters.step_reduction.unipc import UniPC
from flowblend_plugins import hookspecs
from flowblend_plugins.contract.markers import HOOK_PREFIX
from flowblend_plugins.manager import make_plugin_manager
from flowblend_plugins.testing import RecordingPlugin, generate, tiny_wan_denoiser, tiny_wan_pipeline

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith(HOOK_PREFIX))


@pytest.fixture
def recorder() -> RecordingPlugin:
    return RecordingPlugin()


def run(recorder: Any, schedule: str = "LSL", **call: Any) -> fb.Blend:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), schedule, plugins=[recorder]) as blend:
        generate(pipe, **call)
    return blend


def test_register_adapters(recorder: RecordingPlugin) -> None:
    make_plugin_manager([recorder])
    assert recorder.of("flowblend_register_adapters")


def test_register_pairs(recorder: RecordingPlugin) -> None:
    make_plugin_manager([recorder])
    assert recorder.of("flowblend_register_pairs")


def test_register_metrics(recorder: RecordingPlugin) -> None:
    make_plugin_manager([recorder])
    assert recorder.of("flowblend_register_metrics")


def test_register_commands(recorder: RecordingPlugin) -> None:
    import typer

    app = typer.Typer()
    make_plugin_manager([recorder]).hook.flowblend_register_commands(app=app)
    assert recorder.of("flowblend_register_commands") == [{"app": app}]


def test_configure_generation_may_change_the_call() -> None:
    class SixSteps:
        @fb.hookimpl
        def flowblend_configure_generation(self, pipeline: Any, call_arguments: dict[str, Any]) -> None:
            assert "guidance_scale" not in call_arguments, "only what the caller gave is shown"
            call_arguments["num_inference_steps"] = 6

    blend = run(SixSteps(), num_inference_steps=10)
    assert blend.trace.last is not None
    assert [call.step.num_inference_steps for call in blend.trace.last.calls] == [6] * 12


def test_configure_generation_is_given_the_pipeline_and_the_callers_arguments(recorder: RecordingPlugin) -> None:
    blend = run(recorder, num_inference_steps=4)
    (call,) = recorder.of("flowblend_configure_generation")
    assert call["pipeline"] is blend.pipeline
    assert call["call_arguments"]["num_inference_steps"] == 4


def test_route_overrules_the_schedule() -> None:
    class SmallAtOddSteps:
        @fb.hookimpl
        def flowblend_route(self, step: fb.StepContext) -> str | None:
            return "S" if step.step_index % 2 else None

    blend = run(SmallAtOddSteps(), "LLL", num_inference_steps=4)
    assert blend.trace.last is not None
    assert [call.step.denoiser for call in blend.trace.last.calls] == list("LLSSLLSS")


def test_route_is_asked_once_for_every_call_and_the_first_answer_wins(recorder: RecordingPlugin) -> None:
    run(recorder, num_inference_steps=5)
    asked = [(call["step"].step_index, call["step"].branch) for call in recorder.of("flowblend_route")]
    assert asked == [(step, branch) for step in range(5) for branch in ("cond", "uncond")]
    assert [call["step"].denoiser for call in recorder.of("flowblend_route")][::2] == list("LLSSL")


def test_route_to_a_denoiser_that_is_not_there_is_an_error() -> None:
    class Lost:
        @fb.hookimpl
        def flowblend_route(self, step: fb.StepContext) -> str:
            return "X"

    with pytest.raises(fb.PluginError, match=r"returned 'X' at step 0; the denoisers of this pipeline are L, S"):
        run(Lost())


class Averaged:
    """Both denoisers at every step of the small one, and the mean of the two."""

    @fb.hookimpl
    def flowblend_answer(self, call: Any) -> Any:
        if call.step.denoiser != "S":
            return None
        (large,), (small,) = call.run("L"), call.run()
        call.mark_predicted()
        return ((large + small) / 2,)


def test_answer_may_run_other_denoisers_and_combine_them() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    large, num_calls = pipe.transformer.forward, 0

    def by_hand(**kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        velocity = large(**kwargs)[0]
        return ((velocity + small(**kwargs)[0]) / 2,) if 4 < num_calls <= 8 else (velocity,)

    pipe.transformer.forward = by_hand
    expected = generate(pipe, num_inference_steps=5)
    del pipe.transformer.forward
    with fb.enable(pipe, small, "L:2,S:2,L:1", plugins=[Averaged()]) as blend:
        assert torch.equal(generate(pipe, num_inference_steps=5), expected)
        assert blend.trace.last is not None
        calls = [(c.step.denoiser, c.outcome, c.is_extra) for c in blend.trace.last.calls if c.step.branch == "cond"]
        assert calls[2:4] == [("L", "compute", True), ("S", "predict", False)]
        # Asked for beside the schedule's own, the large one has seen every step: it enters once.
        assert [(entry.denoiser, entry.step_index) for entry in blend.trace.last.entries] == [
            ("L", 0),
            ("S", 2),
            ("L", 4),
        ]


def test_answer_without_any_denoiser_is_a_prediction_that_cost_nothing() -> None:
    class Zero:
        @fb.hookimpl
        def flowblend_answer(self, call: Any) -> Any:
            return (torch.zeros_like(call.kwargs["hidden_states"]),) if call.step.step_index == 1 else None

    blend = run(Zero(), "LLL", num_inference_steps=4)
    assert blend.trace.last is not None
    assert [call.outcome for call in blend.trace.last.calls] == ["compute"] * 2 + ["predict"] * 2 + ["compute"] * 4
    assert blend.trace.flops().full_fraction_of_large == pytest.approx(0.75)


def test_answer_that_asks_for_a_denoiser_that_is_not_there_is_an_error() -> None:
    class Lost:
        @fb.hookimpl
        def flowblend_answer(self, call: Any) -> Any:
            return call.run("X")

    with pytest.raises(
        fb.PluginError, match=r"asked for denoiser 'X' at step 0; the denoisers of this pipeline are L, S"
    ):
        run(Lost())


def test_stage_entered_once_for_each_entry_of_a_denoiser(recorder: RecordingPlugin) -> None:
    blend = run(recorder, num_inference_steps=10)
    entries = recorder.of("flowblend_stage_entered")
    assert [(entry["step"].step_index, entry["step"].denoiser) for entry in entries] == [(0, "L"), (4, "S"), (8, "L")]
    assert [entry["denoiser"] for entry in entries] == [blend.denoisers[letter] for letter in "LSL"]
    assert {entry["reentry"] for entry in entries} == {"recompute"}


def test_denoiser_called_after_every_call(recorder: RecordingPlugin) -> None:
    blend = run(recorder, num_inference_steps=5)
    called = recorder.of("flowblend_denoiser_called")
    assert blend.trace.last is not None
    assert [call["step"] for call in called] == [record.step for record in blend.trace.last.calls]
    assert all(call["denoiser"] is blend.denoisers[call["step"].denoiser] for call in called)
    assert {call["outcome"] for call in called} == {"compute"}
    assert all(call["time_ms"] > 0 for call in called)


def test_denoiser_called_says_what_an_adapter_reported(recorder: RecordingPlugin) -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, schedule="LLL", plugins=[recorder]) as blend:

        def report(module: Any, args: Any) -> None:
            assert blend.trace.step is not None
            if blend.trace.step.step_index == 1 and blend.trace.step.branch == "uncond":
                blend.trace.reporter.report_outcome("reuse")

        pipe.transformer.register_forward_pre_hook(report)
        generate(pipe, 3)
        assert blend.trace.step is None
    outcomes = [call["outcome"] for call in recorder.of("flowblend_denoiser_called")]
    assert outcomes == ["compute", "compute", "compute", "reuse", "compute", "compute"]


def test_generation_finished_whatever_happens(recorder: RecordingPlugin) -> None:
    def interrupt(*args: Any) -> dict[str, torch.Tensor]:
        raise KeyboardInterrupt

    blend = run(recorder, num_inference_steps=3)
    (finished,) = recorder.of("flowblend_generation_finished")
    assert finished == {"pipeline": blend.pipeline, "trace": blend.trace, "error": None}
    with pytest.raises(KeyboardInterrupt):
        run(recorder, num_inference_steps=3, callback_on_step_end=interrupt)
    assert isinstance(recorder.of("flowblend_generation_finished")[-1]["error"], KeyboardInterrupt)


def test_what_an_adapter_attaches_hears_the_hooks_of_its_blend_alone() -> None:
    pipe, other = tiny_wan_pipeline(), tiny_wan_pipeline()
    with (
        fb.enable(pipe, schedule="LLL", adapters=["unipc(num_inference_steps=3)"]) as blend,
        fb.enable(other, schedule="LLL") as plain,
    ):
        generate(pipe, None)
        generate(other, 5)
    assert blend.trace.last is not None
    assert plain.trace.last is not None
    assert (len(blend.trace.last.calls), len(plain.trace.last.calls)) == (6, 10)


class Adopting:
    """Finds a set-up on every pipeline that has one."""

    @fb.hookimpl
    def flowblend_adopt(self, pipeline: Any) -> list[Any]:
        return [UniPC(num_inference_steps=3)] if hasattr(pipeline, "set_up") else []


def test_adopt_joins_the_stack_ahead_of_what_was_asked_for() -> None:
    pipe = tiny_wan_pipeline()
    pipe.set_up = True
    with fb.enable(pipe, schedule="LLL", plugins=[Adopting()]) as blend:
        assert [adapter.name for adapter in blend.adapters] == ["unipc"]
        generate(pipe, None)
    assert blend.trace.last is not None
    assert len(blend.trace.last.calls) == 6
    with fb.enable(tiny_wan_pipeline(), schedule="LLL", plugins=[Adopting()]) as blend:
        assert blend.adapters == ()


def test_adopt_does_not_add_what_was_asked_for_by_name_and_is_judged_with_the_stack() -> None:
    pipe = tiny_wan_pipeline()
    pipe.set_up = True
    with fb.enable(pipe, schedule="LLL", adapters=["unipc(flow_shift=5.0)"], plugins=[Adopting()]) as blend:
        assert blend.adapters == (UniPC(flow_shift=5.0),)
    with pytest.raises(fb.StackError, match="'unipc' and 'dpmpp_2m' both decide the sampler"):
        fb.enable(pipe, schedule="LLL", adapters=["dpmpp_2m"], plugins=[Adopting()])


@pytest.mark.parametrize(
    ("gives", "said"),
    [(lambda: ["unipc"], "gave 'unipc', expected an Adapter"), (lambda: 1 / 0, "fails in flowblend_adopt: ZeroDiv")],
)
def test_adopt_gone_wrong_names_the_plugin(gives: Any, said: str) -> None:
    class Wrong:
        @fb.hookimpl
        def flowblend_adopt(self) -> Any:
            return gives()

    with pytest.raises(fb.PluginError, match=f"Wrong.*{said}"):
        fb.enable(tiny_wan_pipeline(), schedule="LLL", plugins=[Wrong()])


# -- the contract as a whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test_of_its_own(hook: str) -> None:
    mine = f"test_{hook.removeprefix(HOOK_PREFIX)}"
    assert any(name.startswith(mine) for name in vars(sys.modules[__name__])), f"no test is named {mine}…"


@pytest.mark.parametrize("hook", HOOKS)
def test_the_recording_plugin_records_every_hook_with_every_argument(hook: str) -> None:
    implementation = getattr(RecordingPlugin(), hook)
    recorded = implementation.__code__.co_varnames[1 : implementation.__code__.co_argcount]
    spec = getattr(hookspecs, hook).__code__
    assert recorded == spec.co_varnames[: spec.co_argcount]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_typed_and_says_in_one_sentence_what_it_is_for(hook: str) -> None:
    spec = getattr(hookspecs, hook)
    assert set(spec.__annotations__) == {*spec.__code__.co_varnames[: spec.__code__.co_argcount], "return"}
    assert spec.__doc__
    assert re.fullmatch(r"[^\n]+\.", spec.__doc__)


def test_the_contract_is_one_readable_page() -> None:
    assert len(Path(str(hookspecs.__file__)).read_text().splitlines()) < 200
