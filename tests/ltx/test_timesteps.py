"""What a plan tells of LTX pipelines is what runs, or it says that it does not know."""

from __future__ import annotations

from typing import Any

import pytest

import flowblend_plugins as fb
from flowblend_plugins.pipelines.source import read_source
from tests.exactness.pipelines import FAMILIES, Family
from tests.ltx.pipelines import ALL, CONDITION, IMAGE, LTX2, SIZE, TEXT

BY_SIGMA = "L>=0.9,S>=0.4,L"


def planned_and_run(family: Family, schedule: str, steps: int, **call: Any) -> tuple[list[Any], list[Any]]:
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), schedule) as blend:
        arguments = {**family.arguments(1), **call}
        planned = blend.preview(steps, **arguments)[0]
        family.run(pipe, steps, **call)
        calls = blend.trace.last.calls
    return [(s.denoiser, s.sigma, s.timestep) for s in planned], [
        (c.step.denoiser, c.step.sigma, c.step.timestep) for c in calls
    ]


@pytest.mark.parametrize("name", [name for name in ALL if name != "ltx2"])
@pytest.mark.parametrize("schedule", ["LSL", BY_SIGMA])
def test_the_plan_is_what_runs(name: str, schedule: str) -> None:
    planned, ran = planned_and_run(ALL[name], schedule, 10)
    assert planned == ran
    assert {letter for letter, *_ in ran} == {"L", "S"}


def test_a_schedule_by_sigma_on_a_shifted_condition_pipeline() -> None:
    planned, ran = planned_and_run(FAMILIES["ltx-condition"], BY_SIGMA, 10)
    assert "".join(letter for letter, *_ in planned) == "".join(letter for letter, *_ in ran) == "LLLLLLLLSS"


def test_timesteps_of_the_call_are_planned() -> None:
    levels = [1000.0, 909.0, 725.0, 421.0]
    planned, ran = planned_and_run(CONDITION, BY_SIGMA, 4, timesteps=levels)
    assert planned == ran
    assert [timestep for *_, timestep in planned] == levels


@pytest.mark.parametrize("family", [TEXT, IMAGE], ids=lambda family: family.name)
def test_without_the_size_the_shift_is_said_to_be_unknown(family: Family) -> None:
    with fb.enable(family.pipe(), family.make_small()) as blend:
        with pytest.raises(fb.RoutingError, match="they follow from height, width, num_frames of the call"):
            blend.preview(10)
        assert len(blend.preview(10, **SIZE)[0]) == 10


def test_ltx2_says_that_its_shift_is_unknown() -> None:
    blend = fb.enable(LTX2.pipe(), LTX2.make_small())
    with blend, pytest.raises(fb.RoutingError, match="not known before the call"):
        blend.preview(10, **LTX2.arguments(1))


def test_a_subclass_that_wraps_its_parents_call_is_planned_as_its_parent() -> None:
    pipe = CONDITION.pipe()

    class Logged(type(pipe)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    plain = [step.sigma for step in fb.enable(pipe, schedule="LLL").plan(6)[0]]
    wrapped = Logged(**CONDITION.pipe().components)
    assert [step.sigma for step in fb.enable(wrapped, schedule="LLL").plan(6)[0]] == plain


def test_planning_leaves_the_pipeline_alone() -> None:
    pipe = CONDITION.pipe()
    with fb.enable(pipe, schedule="LLL") as blend:
        before = pipe.scheduler.timesteps, dict(vars(pipe))
        blend.preview(7)
        assert pipe.scheduler.timesteps is before[0]
        assert dict(vars(pipe)) == before[1]


def test_what_ltx_pipelines_hand_their_sampler() -> None:
    assert read_source(TEXT.pipe()).timestep_arguments == ("sigmas", "mu")
    assert read_source(CONDITION.pipe()).timestep_arguments == ("timesteps",)
    assert "per_token_timesteps" in read_source(CONDITION.pipe()).step_keywords
    assert read_source(LTX2.pipe()).copies_scheduler
