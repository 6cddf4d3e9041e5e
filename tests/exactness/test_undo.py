"""Whatever happened while FlowBlending was enabled, afterwards the pipeline is what it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.testing import tiny_wan_denoiser
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.pipelines import FAMILIES, SCHEDULERS, SKYREELS, UNETS, plain_latents
from tests.exactness.pipelines import Family as PipelineFamily

ALL = {family.name: family for family in (*FAMILIES.values(), SKYREELS, *UNETS)}
everywhere = pytest.mark.parametrize("family", ALL.values(), ids=ALL)


class Stumble(Exception):
    """Raised in the middle of a denoiser's forward."""


def stumble_at_call(denoiser: torch.nn.Module, number: int) -> Any:
    """Make the denoiser raise in its ``number``-th forward from now; returns the handle that takes this off."""
    calls = iter(range(1, 1000))
    inner = next(m for m in denoiser.modules() if isinstance(m, torch.nn.Linear))

    def stumble(*_: Any) -> None:
        if next(calls) == number:
            raise Stumble

    return inner.register_forward_pre_hook(stumble)


@everywhere
def test_enable_and_disable_without_a_generation_change_nothing(family: PipelineFamily) -> None:
    pipe, small = family.pipe(), family.make_small()
    before = snapshot(pipe, small)
    fb.enable(pipe, small).disable()
    assert snapshot(pipe, small) == before


@everywhere
def test_disable_after_a_generation_leaves_the_plain_pipeline(family: PipelineFamily) -> None:
    pipe, small = family.pipe(), family.make_small()
    plain = family.run(pipe)
    before = snapshot(pipe, small)
    blend = fb.enable(pipe, small, "LSL")
    assert snapshot(pipe, small) != before
    assert isinstance(pipe, type(family.pipe()))
    assert not torch.equal(family.run(pipe), plain)
    blend.disable()
    assert snapshot(pipe, small) == before
    assert torch.equal(family.run(pipe), plain)


@everywhere
@pytest.mark.parametrize("raising", ["L", "S"])
def test_an_exception_in_the_middle_of_a_step(family: PipelineFamily, raising: str) -> None:
    pipe, small = family.pipe(), family.make_small()
    plain = family.run(pipe)
    before = snapshot(pipe, small)
    with fb.enable(pipe, small, "LSL") as blend:
        first = family.run(pipe)
        handle = stumble_at_call(blend.denoisers[raising], 2)
        with pytest.raises(Stumble):
            family.run(pipe)
        handle.remove()
        assert blend.trace.last is not None
        assert blend.trace.last.error == "Stumble: "
        assert torch.equal(family.run(pipe), first)
    assert snapshot(pipe, small) == before
    assert torch.equal(family.run(pipe), plain)


@everywhere
@pytest.mark.parametrize("raising", ["L", "S"])
def test_an_exception_that_leaves_the_with_block(family: PipelineFamily, raising: str) -> None:
    pipe, small = family.pipe(), family.make_small()
    plain = family.run(pipe)
    before = snapshot(pipe, small)
    handle = stumble_at_call({"L": getattr(pipe, family.slot), "S": small}[raising], 2)
    with pytest.raises(Stumble), fb.enable(pipe, small, "LSL"):
        family.run(pipe)
    handle.remove()
    assert snapshot(pipe, small) == before
    assert torch.equal(family.run(pipe), plain)


INTERRUPTIBLE = {name: family for name, family in ALL.items() if name != "stable-video"}  # it has no such property


@pytest.mark.parametrize("family", INTERRUPTIBLE.values(), ids=INTERRUPTIBLE)
@pytest.mark.parametrize("interrupted_at", [1, 3])
def test_an_interrupted_generation(family: PipelineFamily, interrupted_at: int) -> None:
    def interrupt(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == interrupted_at:
            pipe._interrupt = True
        return tensors

    pipe, small = family.pipe(), family.make_small()
    plain = family.run(pipe)
    before = snapshot(pipe, small)
    with fb.enable(pipe, small, "LSL") as blend:
        first = family.run(pipe)
        assert not torch.equal(family.run(pipe, callback_on_step_end=interrupt), first)
        assert blend.trace.last is not None
        assert {call.step.step_index for call in blend.trace.last.calls} == set(range(interrupted_at + 1))
        assert torch.equal(family.run(pipe), first)
    assert snapshot(pipe, small) == before
    assert torch.equal(family.run(pipe), plain)


class MarksTraining(fb.Adapter):
    """Attaches in a way that a snapshot sees."""

    name = "marks_training"
    traits = fb.AdapterTraits(family=Family.FEATURE_CACHING)

    @contextlib.contextmanager
    def attach(self, target: fb.AttachTarget) -> Iterator[None]:
        target.denoisers["S"].train()
        try:
            yield
        finally:
            target.denoisers["S"].eval()


class CannotAttach(fb.Adapter):
    """Finds out while attaching that it cannot work."""

    name = "cannot_attach"
    traits = fb.AdapterTraits(family=Family.FEATURE_CACHING)

    @contextlib.contextmanager
    def attach(self, target: fb.AttachTarget) -> Iterator[None]:
        assert target.denoisers["S"].training
        raise fb.StackError("it cannot work here")
        yield


@everywhere
def test_a_failed_enable(family: PipelineFamily) -> None:
    pipe, small = family.pipe(), family.make_small()
    plain = family.run(pipe)
    before = snapshot(pipe, small)
    refused: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"small": small, "adapters": [MarksTraining(), CannotAttach()]}, fb.StackError),
        ({"small": small, "schedule": "LXL"}, fb.PairError),
        ({"small": small, "schedule": "L:3,S:0"}, fb.ScheduleError),
        ({"small": small, "early": 0.7, "late": 0.7}, fb.ScheduleError),
        ({"small": small, "reentry": "sometimes"}, fb.RoutingError),
        ({"small": object()}, fb.PairError),
        ({}, fb.PairError),
    ]
    for arguments, error in refused:
        with pytest.raises(error):
            fb.enable(pipe, **arguments)
        assert snapshot(pipe, small) == before
    assert torch.equal(family.run(pipe), plain)


def test_a_generation_that_the_schedule_does_not_fit_is_refused_and_leaves_nothing() -> None:
    family = FAMILIES["wan"]
    pipe, small = family.pipe(), family.make_small()
    plain = family.run(pipe)
    before = snapshot(pipe, small)
    with fb.enable(pipe, small, "L:4,S:4"):
        with pytest.raises(fb.ScheduleError, match="covers 8 steps, but this generation has 6"):
            family.run(pipe)
        assert family.run(pipe, 8).isfinite().all()
    assert snapshot(pipe, small) == before
    assert torch.equal(family.run(pipe), plain)


def test_wrong_call_arguments_are_the_errors_of_the_pipeline() -> None:
    pipe = FAMILIES["wan"].pipe()
    with fb.enable(pipe, tiny_wan_denoiser()) as blend:
        for args, kwargs in [((), {"nonsense": 1}), (("a", "b"), {"prompt": "c"}), (("a",) * 50, {})]:
            with pytest.raises(TypeError):
                pipe(*args, **kwargs)
        assert blend.trace.last is None


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_what_the_user_changes_meanwhile_stays(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.pipe("euler")
    blend = fb.enable(pipe, family.make_small())
    pipe.scheduler = SCHEDULERS["unipc"]()
    blended = family.run(pipe)
    blend.disable()
    assert pipe.config["scheduler"] == ("diffusers", "UniPCMultistepScheduler")
    assert torch.equal(family.run(pipe), plain_latents(family, "unipc"))
    with fb.enable(pipe, family.make_small()):
        assert torch.equal(family.run(pipe), blended)


def test_disable_twice_is_harmless_and_during_a_generation_refused() -> None:
    def disable(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        blend.disable()
        return tensors

    family = FAMILIES["wan"]
    pipe = family.pipe()
    plain = family.run(pipe)
    blend = fb.enable(pipe, family.make_small())
    blended = family.run(pipe)
    with pytest.raises(fb.RoutingError, match="in the middle of a generation"):
        family.run(pipe, callback_on_step_end=disable)
    assert blend.is_enabled
    assert torch.equal(family.run(pipe), blended)
    blend.disable()
    blend.disable()
    assert not blend.is_enabled
    assert torch.equal(family.run(pipe), plain)


@pytest.mark.parametrize("copied", ["pipeline", "denoiser"])
def test_copies_are_refused_while_enabled_and_right_afterwards(copied: str) -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    plain = family.run(pipe)
    with fb.enable(pipe, family.make_small()), pytest.raises(fb.RoutingError, match="Call disable"):
        copy.deepcopy(pipe if copied == "pipeline" else pipe.transformer)
    assert torch.equal(family.run(copy.deepcopy(pipe)), plain)


def test_new_objects_made_by_the_enabled_classes_are_plain() -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    plain = family.run(pipe)
    with fb.enable(pipe, family.make_small(), "SSS"):
        twin = type(pipe)(
            **{**pipe.components, "transformer": type(pipe.transformer).from_config(pipe.transformer.config)}
        )
        twin.transformer.load_state_dict(pipe.transformer.state_dict())
        twin.set_progress_bar_config(disable=True)
        assert type(twin) is type(family.pipe())
        assert type(twin.transformer) is type(tiny_wan_denoiser())
        assert torch.equal(family.run(twin), plain)
