"""Stacks on real pipelines: the facts are read off them, and a refusal comes before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from diffusers import AnimateDiffPipeline, HunyuanVideoPipeline, WanVideoToVideoPipeline

import flowblend_plugins as fb
from flowblend_adapters.step_reduction.flow_euler import FlowEuler
from flowblend_plugins.contract.stack import judge_adapters, judge_call, setting_of
from flowblend_plugins.contract.traits import Composition, Family
from flowblend_plugins.manager import adapters_by_name, make_adapters, make_plugin_manager
from flowblend_plugins.testing import (
    PipelineSnapshot,
    generate,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)

LSL = fb.StageSchedule.parse("LSL")


@dataclass(frozen=True, kw_only=True)
class Unguided(fb.Adapter):
    name: ClassVar[str] = "unguided"
    traits: ClassVar[fb.AdapterTraits] = fb.AdapterTraits(
        family=Family.DISTILLED_SAMPLER, needs_guidance_off=True, min_useful_steps=3
    )

    def attach(self, target: fb.AttachTarget) -> nullcontext[None]:
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Hindered(Unguided):
    name: ClassVar[str] = "hindered"

    def obstacles(self, pipe: Any) -> Iterable[tuple[str, str]]:
        return [(f"{type(pipe).__name__} is too small", "Take a larger one.")]


@dataclass(frozen=True, kw_only=True)
class FailsHalfway(Unguided):
    name: ClassVar[str] = "fails_halfway"

    def attach(self, target: fb.AttachTarget) -> nullcontext[None]:
        raise RuntimeError("no memory")


@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 3.0}])
def test_guidance_is_judged_when_the_call_says_whether_it_guides(guidance: dict[str, float]) -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=[Unguided()]):
        with pytest.raises(fb.StackError, match=r"guidance is on\. Call the pipeline with guidance_scale=1\.0"):
            generate(pipe, 4, **guidance)
        generate(pipe, 4, guidance_scale=1.0)


def test_obstacles_are_refused_with_the_rest_and_nothing_is_changed() -> None:
    pipe = tiny_wan_pipeline()
    snapshot = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.StackError) as refused:
        fb.enable(pipe, tiny_wan_denoiser(), adapters=[Hindered(), "unipc", "flow_euler"])
    assert "(1) 'hindered': WanPipeline is too small. Take a larger one. (2) 'unipc' and 'flow_euler'" in str(
        refused.value
    )
    assert snapshot.differences(pipe) == []


def test_an_adapter_that_fails_to_attach_takes_those_before_it_along() -> None:
    pipe = tiny_wan_pipeline()
    before = generate(pipe)
    snapshot = PipelineSnapshot.of(pipe)
    with pytest.raises(RuntimeError, match="no memory"):
        fb.enable(pipe, tiny_wan_denoiser(), adapters=["flow_euler", FailsHalfway()])
    assert snapshot.differences(pipe) == []
    assert (generate(pipe) == before).all()


def test_a_misspelt_hook_of_an_attached_adapter_is_an_error_and_takes_everything_off() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Typo(Unguided):
        def attach(self, target: fb.AttachTarget) -> nullcontext[Any]:
            return nullcontext(SimpleNamespace(flowblend_rout=fb.hookimpl(lambda: None)))

    pipe = tiny_wan_pipeline()
    snapshot = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.PluginError, match=r"adapter 'unguided' implements flowblend_rout.*mean flowblend_route\?"):
        fb.enable(pipe, tiny_wan_denoiser(), adapters=[Typo()])
    assert snapshot.differences(pipe) == []


def test_a_guidance_distilled_denoiser_is_guided_by_true_cfg_scale() -> None:
    pipe = HunyuanVideoPipeline.__new__(HunyuanVideoPipeline)
    pipe.__dict__["transformer"] = tiny_wan_denoiser()
    setting = setting_of(pipe, "transformer", LSL, "recompute")
    verdicts = [judge_call([Unguided()], setting, pipe, call) for call in ({}, {"true_cfg_scale": 6.0})]
    assert [verdict.composition is Composition.REFUSED for verdict in verdicts] == [False, True]


@pytest.mark.parametrize(("make", "apart"), [(tiny_wan_pipeline, True), (tiny_ltx_pipeline, False)])
def test_whether_branches_are_called_apart_is_read_off_the_pipeline(make: Callable[[], Any], apart: bool) -> None:
    pipe = make()
    assert setting_of(pipe, "transformer", LSL, "recompute").branches_called_apart is apart
    with fb.enable(pipe, schedule="LLL"):
        setting = setting_of(pipe, "transformer", LSL, "recompute")
        assert setting.branches_called_apart is apart
        assert setting.pipeline_classes[:2] == (type(pipe).__name__, "DiffusionPipeline")


@pytest.mark.parametrize("pipeline_class", [WanVideoToVideoPipeline, AnimateDiffPipeline])
def test_it_is_unknown_where_no_cache_context_is_opened(pipeline_class: Any) -> None:
    pipe = pipeline_class.__new__(pipeline_class)
    pipe.__dict__["transformer"] = tiny_wan_denoiser()
    assert setting_of(pipe, "transformer", LSL, "recompute").branches_called_apart is None


def test_what_the_schedule_and_the_stack_say_reaches_the_verdict() -> None:
    pipe = tiny_wan_pipeline()
    settings = [setting_of(pipe, "transformer", fb.StageSchedule.parse(text), "keep") for text in ("LSL", "LLL", "SSS")]
    assert [setting.denoiser_changes for setting in settings] == [True, False, False]
    assert settings[0].reentry == "keep"
    assert judge_adapters([Hindered()], pipe, settings[0]).composition is Composition.REFUSED
    assert judge_adapters([Unguided()], pipe, settings[0]).composition is Composition.COMPOSES


@dataclass(frozen=True, kw_only=True)
class RefusesToAttach(Unguided):
    name: ClassVar[str] = "refuses_to_attach"
    cause: str = "it is raining"

    def attach(self, target: fb.AttachTarget) -> nullcontext[None]:
        raise fb.StackError(f"{self.name!r}: {self.cause}. Wait.")


def test_what_adapters_refuse_only_when_they_attach_is_told_together() -> None:
    pipe = tiny_wan_pipeline()
    snapshot = PipelineSnapshot.of(pipe)
    one, two = RefusesToAttach(), RefusesToAttach(cause="it is snowing")
    with pytest.raises(fb.StackError) as refused:
        fb.enable(pipe, tiny_wan_denoiser(), adapters=[one, "flow_euler", two])
    assert str(refused.value) == (
        "this stack cannot work, for 2 reasons: (1) 'refuses_to_attach': it is raining. Wait. "
        "(2) 'refuses_to_attach': it is snowing. Wait."
    )
    with pytest.raises(fb.StackError, match=r"^'refuses_to_attach': it is raining\. Wait\.$"):
        fb.enable(pipe, tiny_wan_denoiser(), adapters=["flow_euler", one])
    assert snapshot.differences(pipe) == []


def test_an_adapter_whose_traits_depend_on_options_is_judged_by_them() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Optional(Unguided):
        unguided: bool = True

        def traits_with_options(self) -> fb.AdapterTraits:
            return replace(self.traits, needs_guidance_off=self.unguided)

    pipe = tiny_wan_pipeline()
    setting = setting_of(pipe, "transformer", LSL, "recompute")
    guided = [judge_call([Optional(unguided=un)], setting, pipe, {"guidance_scale": 3.0}) for un in (True, False)]
    assert [verdict.composition is Composition.REFUSED for verdict in guided] == [True, False]
    assert Optional(unguided=False).traits is Optional.traits is Unguided.traits


def test_no_adapter_rewrites_its_own_traits() -> None:
    manager = make_plugin_manager()
    texts = [text for one in adapters_by_name(manager).values() for text in one.suggested]
    texts += ["distilled(num_inference_steps=4, guidance_scale=3.0)", "distilled_small(sigmas=(0.9, 0.4))"]
    for adapter in make_adapters(manager, texts):
        assert "traits" not in vars(adapter), adapter


def test_a_refusal_names_solvers_that_are_registered_and_no_others() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Unregistered(FlowEuler):
        name: ClassVar[str] = "unregistered"

    class Registers:
        @fb.hookimpl
        def flowblend_register_adapters(self) -> list[type[fb.Adapter]]:
            return [Registered]

    @dataclass(frozen=True, kw_only=True)
    class Registered(FlowEuler):
        name: ClassVar[str] = "registered"

    with pytest.raises(fb.StackError, match="Solvers that LTXPipeline takes") as refused:
        fb.enable(tiny_ltx_pipeline(), schedule="LLL", adapters=["sa_solver"], plugins=[Registers()])
    assert "'flow_euler', 'registered', 'unipc'" in str(refused.value)
    assert "unregistered" not in str(refused.value)
