"""Predicted against observed PSNR on random placements of large steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowblend_adapters.blending.forecast.calibration import calibrate_forecast
from flowblend_adapters.blending.forecast.check import check_forecast, noises_of, psnr_db, run_placed
from flowblend_adapters.blending.forecast.moments import VelocityMoments
from flowblend_adapters.blending.forecast.planning.error_model import ErrorModel, solver_error
from flowblend_adapters.blending.forecast.planning.plan import predicted_psnr_db
from flowblend_adapters.blending.forecast.sampler import Sampler
from flowblend_plugins.types import Scheduler

from .pairs import CALIBRATION_SEED, FIRST_CALIBRATION_PROMPT, FIRST_PROMPT, PAIRS, SEED, calls_of

DENSE_STEPS = 60


@dataclass(frozen=True)
class Prediction:
    """One placement: how it samples, which steps are large, and PSNR in dB, predicted and observed."""

    sampler: str
    letters: str
    predicted_db: float
    observed_db: float


def random_placement(rng: np.random.Generator, num_steps: int) -> tuple[int, ...]:
    """The first step and any number of others, evenly drawn or with a preference for early ones."""
    most = max(3, int(0.8 * num_steps))
    number = int(rng.integers(2, most + 1))
    chances = (1.0 - np.arange(1, num_steps) / num_steps) ** rng.choice([0.0, 1.0, 2.0, 3.0])
    others = rng.choice(np.arange(1, num_steps), size=number - 1, replace=False, p=chances / chances.sum())
    return (0, *sorted(int(one) for one in others))


def measured_moments(name: str, num_prompts: int) -> VelocityMoments:
    """The Wan pair's are shipped; of the others they are measured here, on prompts of their own."""
    if name == "wan":
        return VelocityMoments.read("reference")
    pipe, call = PAIRS[name]()
    pipe.set_progress_bar_config(disable=True)
    # A distilled denoiser knows its own noise levels alone.
    dense = {} if name == "wan-distilled" else {"num_inference_steps": DENSE_STEPS}
    calls = calls_of(call, FIRST_CALIBRATION_PROMPT, CALIBRATION_SEED, num_prompts, output_type="latent", **dense)
    moments = calibrate_forecast(pipe, calls=calls)
    return check_forecast(pipe, moments, calls=calls_of(call, FIRST_CALIBRATION_PROMPT, CALIBRATION_SEED, num_prompts))


def predict(
    name: str, moments: VelocityMoments, num_placements: int, num_prompts: int, other_samplers: bool
) -> list[Prediction]:
    """Random placements on one pair, on the pair's own sampler or on others at random."""
    pipe, call = PAIRS[name]()
    pipe.set_progress_bar_config(disable=True)
    calls = calls_of(call, FIRST_PROMPT, SEED, num_prompts)
    noises = [noises_of(one["generator"]) for one in calls]
    large = [run_placed(pipe, moments, None, one, noise) for one, noise in zip(calls, noises, strict=True)]
    rng, own = np.random.default_rng(17), moments.own_sampling
    assert own is not None
    found, scheduler = [], pipe.scheduler
    for _ in range(num_placements):
        told, number = "own", own.sampler.num_steps
        if other_samplers:
            told, number, new = _random_sampler(rng, scheduler)
            pipe.register_modules(scheduler=new)
        placement = random_placement(rng, number)
        made = [
            run_placed(pipe, moments, placement, {**one, "num_inference_steps": number}, noise)
            for one, noise in zip(calls, noises, strict=True)
        ]
        sampler: Sampler = made[0].watched.sampler
        error = ErrorModel(moments, sampler, own.growth).total(placement)
        if other_samplers:
            error += solver_error(moments, sampler, own.sampler, own.growth)
        psnrs = [psnr_db(one.video, wanted.video) for one, wanted in zip(made, large, strict=True)]
        letters = "".join("L" if step in placement else "S" for step in range(number))
        found.append(Prediction(told, letters, predicted_psnr_db(error, own.psnr_offset_db), statistics.fmean(psnrs)))
    pipe.register_modules(scheduler=scheduler)
    return found


def summary(found: Sequence[Prediction]) -> dict[str, float]:
    """Median and 90 % quantile of the absolute error, median of the signed one, and Spearman's rank correlation."""
    errors = np.asarray([one.predicted_db - one.observed_db for one in found])
    ranks = [
        np.argsort(np.argsort(values)) for values in zip(*((o.predicted_db, o.observed_db) for o in found), strict=True)
    ]
    return {
        "median_abs_error_db": float(np.median(np.abs(errors))),
        "p90_abs_error_db": float(np.quantile(np.abs(errors), 0.9)),
        "median_error_db": float(np.median(errors)),
        "rank_correlation": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
    }


def _random_sampler(rng: np.random.Generator, scheduler: Scheduler) -> tuple[str, int, Scheduler]:
    from flowblend_adapters.step_reduction.dpmpp_2m import DPMpp2M
    from flowblend_adapters.step_reduction.unipc import UniPC

    solvers = {"unipc": UniPC, "dpmpp_2m": DPMpp2M}
    name = str(rng.choice(sorted(solvers)))
    number, shift = int(rng.integers(8, 23)), float(rng.choice([1.0, 1.5, 2.0, 3.0]))
    new = solvers[name](num_inference_steps=number, flow_shift=shift).build(scheduler)
    return f"{name}, {number} steps, shift {shift:g}", number, new
