"""The embedded trained pair, prompts and decoding included: bit for bit what diffusers makes without the router."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)

import flowblend_plugins as fb
from flowblend_compat_matrix.reference import CALL_DEFAULTS, ReferencePair, evaluation_captions, load_pair
from flowblend_plugins.testing.snapshot import snapshot

STEPS = 10
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dpm++2m": lambda: DPMSolverMultistepScheduler(**FLOW),
}
PROMPTS = [caption.text for caption in evaluation_captions(2)]


@pytest.fixture(scope="module")
def pair() -> ReferencePair:
    pair = load_pair()
    pair.pipeline.set_progress_bar_config(disable=True)
    return pair


@pytest.fixture(params=SCHEDULERS)
def pipe(request: pytest.FixtureRequest, pair: ReferencePair) -> Any:
    pair.pipeline.scheduler = SCHEDULERS[request.param]()
    return pair.pipeline


def run(pipe: Any, **changes: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    arguments = CALL_DEFAULTS | {"num_inference_steps": STEPS, "output_type": "pt"} | changes
    return pipe(PROMPTS, generator=generators, **arguments).frames


def test_lll_and_sss_are_the_plain_pipelines(pipe: Any, pair: ReferencePair) -> None:
    on_small = WanPipeline(**{**pipe.components, "transformer": pair.small})
    on_small.set_progress_bar_config(disable=True)
    plain, plain_small = run(pipe), run(on_small)
    before = snapshot(pipe, pair.small)
    with fb.enable(pipe, pair.small, "LLL"):
        assert torch.equal(run(pipe), plain)
    with fb.enable(pipe, pair.small, "SSS"):
        blended = run(pipe)
    assert torch.equal(blended, plain_small)
    assert not torch.equal(blended, plain)
    assert snapshot(pipe, pair.small) == before
    assert torch.equal(run(pipe), plain)


def test_ls_is_the_boundary_of_diffusers(pipe: Any, pair: ReferencePair) -> None:
    pipe.scheduler.set_timesteps(STEPS)
    before, after = pipe.scheduler.timesteps[3:5].tolist()
    ratio = (before + after) / 2000
    theirs = WanPipeline(**{**pipe.components, "transformer_2": pair.small}, boundary_ratio=ratio)
    theirs.set_progress_bar_config(disable=True)
    expected = run(theirs)
    for schedule in ("L:4,S:6", fb.StageSchedule.by_sigma("LS", [ratio])):
        with fb.enable(pipe, pair.small, schedule):
            assert torch.equal(run(pipe), expected)


def test_lsl_is_the_large_denoiser_swapped_out_between_steps(pipe: Any, pair: ReferencePair) -> None:
    large = pipe.transformer

    def swap(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.transformer = pair.small if "LLLLSSSSLL"[min(step + 1, STEPS - 1)] == "S" else large
        return {}

    expected = run(pipe, callback_on_step_end=swap)
    pipe.transformer = large
    with fb.enable(pipe, pair.small, "LSL"):
        assert torch.equal(run(pipe), expected)
        assert torch.equal(run(pipe), expected)
