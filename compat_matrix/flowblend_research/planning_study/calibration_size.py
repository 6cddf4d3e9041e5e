"""Fidelity of stacks that are computed from calibrations of fewer prompts and steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from flowblend_adapters.blending.forecast.calibration import calibrate_forecast
from flowblend_adapters.blending.forecast.check import noises_of, psnr_db, run_placed
from flowblend_adapters.blending.forecast.moments import VelocityMoments
from flowblend_adapters.blending.forecast.planning.plan import plan_front
from flowblend_plugins.types import Keywords, KeywordsView

from .pairs import CALIBRATION_SEED, FIRST_CALIBRATION_PROMPT, FIRST_PROMPT, SEED, calls_of, load_wan

PROMPTS = (1, 2, 4, 8, 16)
DENSE_STEPS = (10, 20, 60)
NUM_LARGE = (5, 7, 9)
CHECKING_RUNS = 1 + 1 / 4 + 1 / 3 + 1 / 2 + 1 / 2
"""Large-only and the four stacks that `calibrate forecast` checks, in large-only generations."""


def study(num_prompts: int) -> list[Keywords]:
    """A row for each size of calibration: PSNR to large-only of the stacks with 5, 7 and 9 large steps of 20.

    Args:
        num_prompts: held-out captions that each stack is measured on.
    """
    pipe, call = load_wan()
    pipe.set_progress_bar_config(disable=True)
    shipped = VelocityMoments.read("reference")
    assert shipped.own_sampling is not None
    num_steps = shipped.own_sampling.sampler.num_steps
    calls = calls_of(call, FIRST_PROMPT, SEED, num_prompts)
    noises = [noises_of(one["generator"]) for one in calls]
    large = [run_placed(pipe, shipped, None, one, noise).video for one, noise in zip(calls, noises, strict=True)]

    def observed(moments: VelocityMoments, placement: Sequence[int]) -> float:
        made = (run_placed(pipe, moments, placement, one, noise) for one, noise in zip(calls, noises, strict=True))
        return statistics.fmean(psnr_db(one.video, wanted) for one, wanted in zip(made, large, strict=True))

    rows = []
    for steps in DENSE_STEPS:
        dense = calls_of(
            call, FIRST_CALIBRATION_PROMPT, CALIBRATION_SEED, max(PROMPTS), output_type="latent",
            num_inference_steps=steps,
        )  # fmt: skip
        single = [calibrate_forecast(pipe, calls=[one]) for one in dense]
        for count in PROMPTS:
            moments = VelocityMoments(
                **{
                    **vars(single[0]),
                    "moments": np.mean([one.moments for one in single[:count]], axis=0),
                    "own_sampling": shipped.own_sampling,
                }
            )
            front = {len(stack.large_steps): stack.large_steps for stack in plan_front(moments, "")}
            rows.append(
                {
                    "prompts": count,
                    "steps": steps,
                    "large_steps_run": round(count * (steps + CHECKING_RUNS * num_steps)),
                    "psnr_db": {number: round(observed(moments, front[number]), 2) for number in NUM_LARGE},
                }
            )
            print(rows[-1], flush=True)
    return rows


def to_markdown(rows: Sequence[KeywordsView]) -> str:
    """The table of the docs page."""
    heads = " | ".join(f"{number} large steps" for number in NUM_LARGE)
    lines = [f"| prompts | steps | large steps run | {heads} |", "|" + "---|" * (3 + len(NUM_LARGE))]
    for row in rows:
        cells = " | ".join(f"{value:.1f} dB" for value in row["psnr_db"].values())
        lines.append(f"| {row['prompts']} | {row['steps']} | {row['large_steps_run']} | {cells} |")
    return "\n".join(lines)
