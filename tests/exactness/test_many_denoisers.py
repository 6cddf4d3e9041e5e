"""More than two denoisers, denoisers by guidance branch, and generations that start inside the list of timesteps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import WanPipeline

import flowblend_plugins as fb
from flowblend_plugins.testing import tiny_ltx_denoiser, tiny_wan_denoiser
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.oracles import swapped, wan_by_hand
from tests.exactness.pipelines import FAMILIES, VIDEO_TO_VIDEO, text

WAN = FAMILIES["wan"]


def two_experts() -> Any:
    """A pipeline as Wan 2.2 has it."""
    pipe = WanPipeline(**{**WAN.pipe().components, "transformer_2": tiny_wan_denoiser(9, 2, 2)}, boundary_ratio=0.8)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_small_denoiser_between_the_experts_of_wan_2_2() -> None:
    pipe, small = two_experts(), WAN.make_small()
    plain = WAN.run(pipe, 10)
    before = snapshot(pipe, small)
    denoisers = {"L": pipe.transformer, "S": small, "M": pipe.transformer_2}
    expected = wan_by_hand(WAN.pipe().scheduler, lambda i, _: denoisers["LLLLSSSMMM"[i]], text(1, 16), 10)
    with fb.enable(pipe, small, denoisers={"M": pipe.transformer_2}, schedule="L:4,S:3,M:3") as blend:
        assert torch.equal(WAN.run(pipe, 10), expected)
        assert torch.equal(WAN.run(pipe, 10), expected)
        assert blend.trace.last is not None
        assert [(entry.denoiser, entry.step_index) for entry in blend.trace.last.entries] == [
            ("L", 0), ("S", 4), ("M", 7),
        ]  # fmt: skip
    assert snapshot(pipe, small) == before
    assert torch.equal(WAN.run(pipe, 10), plain)


def test_the_experts_alone_by_their_own_boundary() -> None:
    pipe = two_experts()
    plain = WAN.run(pipe, 10)
    with fb.enable(pipe, denoisers={"M": pipe.transformer_2}, schedule=fb.StageSchedule.by_sigma("LM", [0.8])):
        assert torch.equal(WAN.run(pipe, 10), plain)


def test_an_expert_without_a_letter_is_refused() -> None:
    pipe, small = two_experts(), WAN.make_small()
    before = snapshot(pipe, small)
    with pytest.raises(fb.PairError, match=r'two experts.*Pass denoisers=\{"M": pipe.transformer_2\}'):
        fb.enable(pipe, small, "LSL")
    assert snapshot(pipe, small) == before


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox"])
def test_three_denoisers_where_the_pipeline_has_one(name: str) -> None:
    family = FAMILIES[name]
    make_third = {"wan": tiny_wan_denoiser, "ltx": tiny_ltx_denoiser}.get(
        name, lambda *_: family.make_pipe().transformer
    )
    pipe, small, third = family.pipe(), family.make_small(), make_third(9, 2, 1)
    plain = family.run(pipe)
    twin = family.pipe()
    expected = swapped(family, twin, {"L": twin.transformer, "S": small, "M": third}, "LMMSSL")
    before = snapshot(pipe, small, third)
    with fb.enable(pipe, small, "L:1,M:2,S:2,L:1", denoisers={"M": third}):
        assert torch.equal(family.run(pipe), expected)
        assert {id(small), id(third)} <= {*map(id, vars(pipe).values())}  # they go along, but are no components
    assert snapshot(pipe, small, third) == before
    assert torch.equal(family.run(pipe), plain)


class SmallForUncond:
    """The large denoiser for the condition, the small one for what guidance subtracts."""

    @fb.hookimpl
    def flowblend_route(self, step: fb.StepContext) -> str | None:
        return "S" if step.branch == "uncond" else None


def test_a_plugin_routes_by_guidance_branch() -> None:
    pipe, small = WAN.pipe(), WAN.make_small()
    by_branch = {"cond": pipe.transformer, "uncond": small}
    expected = wan_by_hand(WAN.pipe().scheduler, lambda _, branch: by_branch[branch], text(1, 16), 6)
    with fb.enable(pipe, small, "LLL", plugins=[SmallForUncond()]) as blend:
        assert torch.equal(WAN.run(pipe), expected)
        assert torch.equal(WAN.run(pipe), expected)
        assert blend.trace.last is not None
        assert {(call.step.branch, call.step.denoiser) for call in blend.trace.last.calls} == {
            ("cond", "L"), ("uncond", "S"),
        }  # fmt: skip
        # Each serves its branch all the time, so each enters once.
        assert [(entry.denoiser, entry.step_index) for entry in blend.trace.last.entries] == [("L", 0), ("S", 0)]


class Misrouting:
    @fb.hookimpl
    def flowblend_route(self, step: fb.StepContext) -> str | None:
        return "Q"


def test_a_plugin_that_routes_to_nobody_is_an_error() -> None:
    pipe = WAN.pipe()
    plain = WAN.run(pipe)
    with fb.enable(pipe, WAN.make_small(), plugins=[Misrouting()]), pytest.raises(fb.PluginError, match="returned 'Q'"):
        WAN.run(pipe)
    assert torch.equal(WAN.run(pipe), plain)


@pytest.mark.parametrize("scheduler", ["unipc", "euler", "dpm++2m"])
def test_video_to_video_starts_inside_the_list(scheduler: str) -> None:
    family = VIDEO_TO_VIDEO  # strength .6: the last six of ten steps
    pipe, small = family.pipe(scheduler), family.make_small()
    plain = family.run(pipe, 10)
    before = snapshot(pipe, small)
    with fb.enable(pipe, small, "LSL") as blend:
        blended = family.run(pipe, 10)
        assert blend.trace.last is not None
        steps = {call.step.step_index: call.step.denoiser for call in blend.trace.last.calls}
        assert steps == dict(zip(range(4, 10), "SSSSLL", strict=True))
        assert torch.equal(family.run(pipe, 10), blended)
    twin = family.pipe(scheduler)
    expected = swapped(
        family, twin, {"L": twin.transformer, "S": family.make_small()}, "LLLLSSSSLL", first=4, num_inference_steps=10
    )
    assert torch.equal(blended, expected)
    assert snapshot(pipe, small) == before
    assert torch.equal(family.run(pipe, 10), plain)
    on_small = family.pipe(scheduler)
    on_small.transformer = family.make_small()
    with fb.enable(pipe, small, "SSS"):
        assert torch.equal(family.run(pipe, 10), family.run(on_small, 10))


def test_a_conditioned_generation_that_starts_inside_the_list() -> None:
    family = FAMILIES["ltx-condition"]
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LSL") as blend:
        blended = family.run(pipe, 10, denoise_strength=0.6)
        assert blend.trace.last is not None
        assert "".join(call.step.denoiser for call in blend.trace.last.calls) == "SSSSLL"
    twin = family.pipe()
    denoisers = {"L": twin.transformer, "S": family.make_small()}
    call = {"num_inference_steps": 10, "denoise_strength": 0.6}
    assert torch.equal(blended, swapped(family, twin, denoisers, "LLLLSSSSLL", first=4, **call))
