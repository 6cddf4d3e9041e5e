"""Bit for bit: LLL, SSS, LS and LSL against pipelines and loops in which nothing of ours runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from tests.exactness.oracles import ltx_by_hand, swapped, wan_by_hand
from tests.exactness.pipelines import FAMILIES, SIZE, SKYREELS, UNETS, Family, masked_text, plain_latents, text

LSL = "LLSSSL"  # early .4 and late .2 of six steps
# PNDM repeats a timestep and Heun visits each twice: positions are in the list that the scheduler really has.
LSL_BY_LENGTH = {6: LSL, 7: "LLLSSSL", 11: "LLLLSSSSSLL"}

EVERYWHERE = [
    pytest.param(family, scheduler, id=f"{family.name}-{scheduler}")
    for family in (*FAMILIES.values(), SKYREELS, *UNETS)
    for scheduler in family.schedulers
]


def letters_of(blend: fb.Blend) -> str:
    """The denoiser of each step of the last generation, from its trace."""
    assert blend.trace.last is not None
    return "".join({call.step.step_index: call.step.denoiser for call in blend.trace.last.calls}.values())


@pytest.mark.parametrize(("family", "scheduler"), EVERYWHERE)
def test_lll_is_the_plain_pipeline(family: Family, scheduler: str) -> None:
    plain = plain_latents(family, scheduler)
    pipe = family.pipe(scheduler)
    with fb.enable(pipe, family.make_small(), "LLL") as blend:
        assert torch.equal(family.run(pipe), plain)
        assert torch.equal(family.run(pipe), plain)
        assert set(letters_of(blend)) == {"L"}
    assert torch.equal(family.run(pipe), plain)


@pytest.mark.parametrize(("family", "scheduler"), EVERYWHERE)
def test_sss_is_a_pipeline_on_the_small_denoiser(family: Family, scheduler: str) -> None:
    on_small = family.pipe(scheduler)
    setattr(on_small, family.slot, family.make_small())
    pipe = family.pipe(scheduler)
    with fb.enable(pipe, family.make_small(), "SSS") as blend:
        assert torch.equal(family.run(pipe), family.run(on_small))
        assert set(letters_of(blend)) == {"S"}


@pytest.mark.parametrize(("family", "scheduler"), EVERYWHERE)
def test_lsl_is_the_large_denoiser_swapped_out_between_steps(family: Family, scheduler: str) -> None:
    pipe = family.pipe(scheduler)
    with fb.enable(pipe, family.make_small(), "LSL") as blend:
        blended = family.run(pipe)
        letters = letters_of(blend)
        again = family.run(pipe)
    plain = family.pipe(scheduler)
    denoisers = {"L": getattr(plain, family.slot), "S": family.make_small()}
    assert letters == LSL_BY_LENGTH[len(pipe.scheduler.timesteps)]
    assert torch.equal(blended, swapped(family, plain, denoisers, letters))
    assert torch.equal(blended, again)
    assert not torch.equal(blended, plain_latents(family, scheduler))


@pytest.mark.parametrize("scheduler", ["unipc", "euler", "dpm++2m"])
@pytest.mark.parametrize("name", ["wan", "wan-i2v"])
@pytest.mark.parametrize("boundary_step", [1, 3, 5])
def test_ls_is_the_boundary_of_diffusers(name: str, scheduler: str, boundary_step: int) -> None:
    family = FAMILIES[name]
    pipe = family.pipe(scheduler)
    family.run(pipe)
    before, after = pipe.scheduler.timesteps[boundary_step - 1 : boundary_step + 1].tolist()
    boundary_ratio = (before + after) / 2 / pipe.scheduler.config.num_train_timesteps
    theirs = type(pipe)(**{**pipe.components, "transformer_2": family.make_small()}, boundary_ratio=boundary_ratio)
    theirs.set_progress_bar_config(disable=True)
    expected = family.run(theirs)
    runs = f"L:{boundary_step},S:{6 - boundary_step}"
    for schedule in (runs, fb.StageSchedule.by_sigma("LS", [boundary_ratio])):
        with fb.enable(pipe, family.make_small(), schedule):
            assert torch.equal(family.run(pipe), expected)


@pytest.mark.parametrize("scheduler", ["unipc", "euler", "dpm++2m", "heun"])
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_lsl_on_wan_is_a_loop_by_hand(scheduler: str, guidance_scale: float) -> None:
    family = FAMILIES["wan"]
    pipe, small = family.pipe(scheduler), family.make_small()
    letters = LSL_BY_LENGTH[11] if scheduler == "heun" else LSL
    denoisers = {"L": pipe.transformer, "S": small}
    expected = wan_by_hand(
        family.pipe(scheduler).scheduler, lambda i, _: denoisers[letters[i]], text(1, 16), 6, guidance_scale
    )
    with fb.enable(pipe, small, "LSL"):
        assert torch.equal(family.run(pipe, guidance_scale=guidance_scale), expected)


@pytest.mark.parametrize("scheduler", [None, "euler", "unipc"])
def test_lsl_on_ltx_is_a_loop_by_hand(scheduler: str | None) -> None:
    family = FAMILIES["ltx"]
    pipe, small = family.pipe(scheduler), family.make_small()
    denoisers = {"L": pipe.transformer, "S": small}
    expected = ltx_by_hand(pipe, lambda i: denoisers[LSL[i]], masked_text(1, 16) | SIZE, 6)
    with fb.enable(pipe, small, "LSL"):
        assert torch.equal(family.run(pipe), expected)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("variation", [{"guidance_scale": 1.0}, {"batch": 2}], ids=["guidance off", "batch of 2"])
def test_lsl_with_guidance_off_and_with_a_batch(family: Family, variation: dict[str, Any]) -> None:
    pipe = family.pipe()
    plain = family.run(pipe, **variation)
    with fb.enable(pipe, family.make_small(), "LSL"):
        blended = family.run(pipe, **variation)
    denoisers = {"L": pipe.transformer, "S": family.make_small()}
    assert torch.equal(blended, swapped(family, family.pipe(), denoisers, LSL, **variation))
    assert not torch.equal(blended, plain)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_callback_sees_and_changes_the_same_latents(family: Family) -> None:
    def record_and_change(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, float(timestep), tensors["latents"].clone()))
        return {"latents": tensors["latents"] * 0.9}

    seen: list[tuple[int, float, torch.Tensor]] = []
    pipe = family.pipe()
    plain = family.run(pipe, callback_on_step_end=record_and_change)
    expected, seen = seen, []
    with fb.enable(pipe, family.make_small(), "LLL"):
        assert torch.equal(family.run(pipe, callback_on_step_end=record_and_change), plain)
    assert [entry[:2] for entry in seen] == [entry[:2] for entry in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(seen, expected, strict=True))


def test_under_inference_mode() -> None:
    family = FAMILIES["wan"]
    with torch.inference_mode():
        pipe = family.pipe()
        plain = family.run(pipe)
        with fb.enable(pipe, family.make_small(), "LLL"):
            assert torch.equal(family.run(pipe), plain)
