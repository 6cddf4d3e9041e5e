"""Velocity divergence: exact where the answer is known, and without a trace on the run it watches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from flowblend_plugins import enable
from flowblend_plugins.calibration.divergence import Divergence, ShadowRun, divergence, shadowed
from flowblend_plugins.testing import (
    PipelineSnapshot,
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)

STEPS = 4


def watch(pipe: Any, small: Any, guidance_scale: float = 5.0, **call: Any) -> tuple[torch.Tensor, ShadowRun]:
    with enable(pipe, small, "LLL") as blend, shadowed(blend.trace, guidance_scale) as run:
        latents = generate(pipe, num_inference_steps=STEPS, guidance_scale=guidance_scale, **call)
    return latents, run


def by_branch(run: ShadowRun) -> dict[str | None, list[Divergence]]:
    branches: dict[str | None, list[Divergence]] = {}
    for found in run.divergences:
        branches.setdefault(found.branch, []).append(found)
    return branches


@pytest.mark.parametrize(
    ("make_pipeline", "make_small"), [(tiny_wan_pipeline, tiny_wan_denoiser), (tiny_ltx_pipeline, tiny_ltx_denoiser)]
)
def test_the_watched_run_is_the_plain_one_and_nothing_stays(make_pipeline: Any, make_small: Any) -> None:
    pipe, small = make_pipeline(), make_small()
    plain = generate(pipe, num_inference_steps=STEPS, guidance_scale=5.0)
    snapshot = PipelineSnapshot.of(pipe)
    hooks_of_small = dict(small._forward_hooks)
    watched, run = watch(pipe, small)
    assert torch.equal(watched, plain)
    assert torch.equal(generate(pipe, num_inference_steps=STEPS, guidance_scale=5.0), plain)
    assert not snapshot.differences(pipe)
    assert dict(small._forward_hooks) == hooks_of_small
    branches = by_branch(run)
    assert set(branches) == {"cond", "uncond", "guided"}
    for found in branches.values():
        assert [one.step_index for one in found] == list(range(STEPS))
        assert all(one.relative_l2 > 0.01 for one in found), "two random denoisers differ"


def test_a_failed_run_leaves_no_hook() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(pipe, small, callback_on_step_end=interrupt)
    assert not pipe.transformer._forward_hooks


@pytest.mark.parametrize("make_pipeline", [tiny_wan_pipeline, tiny_ltx_pipeline])
def test_a_copy_of_the_large_denoiser_does_not_diverge(make_pipeline: Any) -> None:
    pipe = make_pipeline()
    _, run = watch(pipe, copy.deepcopy(pipe.transformer))
    assert run.divergences
    for found in run.divergences:
        assert found.cosine == pytest.approx(1.0, abs=1e-12)
        assert found.relative_l2 == 0.0


def test_a_scaled_copy_diverges_by_its_scale() -> None:
    pipe = tiny_wan_pipeline()
    small = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        small.proj_out.weight *= -0.5
        small.proj_out.bias *= -0.5
    _, run = watch(pipe, small)
    for found in run.divergences:
        assert found.cosine == pytest.approx(-1.0, abs=1e-5)
        assert found.relative_l2 == pytest.approx(1.5, abs=1e-5)


def test_without_guidance_there_is_one_branch() -> None:
    for pipe, small in ((tiny_wan_pipeline(), tiny_wan_denoiser()), (tiny_ltx_pipeline(), tiny_ltx_denoiser())):
        _, run = watch(pipe, small, guidance_scale=1.0)
        assert set(by_branch(run)) == {"cond"}


def test_guided_divergence_equals_the_velocities_combined_by_hand() -> None:
    """On a batched-guidance pipeline and on one that calls twice, from the denoisers' own outputs."""
    for pipe, small in ((tiny_wan_pipeline(), tiny_wan_denoiser()), (tiny_ltx_pipeline(), tiny_ltx_denoiser())):
        outputs: dict[str, list[torch.Tensor]] = {"L": [], "S": []}
        handles = [
            module.register_forward_hook(lambda m, a, o, kept=outputs[letter]: kept.append(o[0].double().clone()))
            for letter, module in (("L", pipe.transformer), ("S", small))
        ]
        _, run = watch(pipe, small, guidance_scale=3.0)
        for handle in handles:
            handle.remove()
        guided = {}
        for letter, found in outputs.items():
            if len(found) == STEPS:  # uncond first in a batch
                uncond, cond = found[0].chunk(2)
            else:  # cond is called first
                cond, uncond = found[0], found[1]
            guided[letter] = (uncond + 3.0 * (cond - uncond)).flatten()
        cosine = torch.dot(guided["L"], guided["S"]) / guided["L"].norm() / guided["S"].norm()
        relative = (guided["S"] - guided["L"]).norm() / guided["L"].norm()
        first = by_branch(run)["guided"][0]
        assert first.cosine == pytest.approx(float(cosine), abs=1e-5)
        assert first.relative_l2 == pytest.approx(float(relative), rel=1e-4)


def test_known_angles() -> None:
    large = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    cosine, relative_l2 = divergence(large, torch.tensor([[0.0, 4.0], [2.0, 2.0]]))
    assert cosine == pytest.approx((0.0 + 1.0) / 2)
    assert relative_l2 == pytest.approx((5.0 / 3.0 + 1.0) / 2)
