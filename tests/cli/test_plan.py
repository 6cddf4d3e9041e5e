"""The resolved schedule that is told before a run: with solvers, by sigma, and where it cannot be known."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

HEUN = ("--adapter", "flow_heun(num_inference_steps=5)")


@pytest.fixture
def run_pair(small_run: list[str]) -> list[str]:
    """Without --steps, which adapters set here."""
    return [argument for argument in small_run if argument not in ("--steps", "5")]


def test_heun_is_planned_in_timesteps(flowblend: Callable[..., Any], run_pair: list[str]) -> None:
    result = flowblend(*run_pair, *HEUN, "--dry-run")
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == "LSL: L 1-4, S 5-7, L 8-9 of 9 timesteps, for the sampler calls twice a step"


def test_runs_of_steps_are_fitted_to_the_timesteps_of_heun(flowblend: Callable[..., Any], run_pair: list[str]) -> None:
    assert flowblend(*run_pair, *HEUN, "--schedule", "L:4,S:4,L:1", "--json").code == 0
    misfit = flowblend(*run_pair, *HEUN, "--schedule", "L:2,S:2,L:1")
    assert misfit.code == 2
    assert "covers 5 steps, but this generation has 9" in misfit.error_line


def test_what_is_planned_is_what_runs(flowblend: Callable[..., Any], run_pair: list[str]) -> None:
    arguments = (*run_pair, "--schedule", "L>=0.9,S>=0.5,L", "--adapter", "dpmpp_2m(num_inference_steps=6)")
    plan = json.loads(flowblend(*arguments, "--dry-run", "--json").out)
    record = json.loads(flowblend(*arguments, "--json").out)
    calls = record["trace"]["generations"][0]["calls"][::2]
    assert plan["sigmas"] == [call["sigma"] for call in calls]
    letters = ["L" if sigma >= 0.9 or sigma < 0.5 else "S" for sigma in plan["sigmas"]]
    assert letters == [call["denoiser"] for call in calls]
    assert {"L", "S"} == {*letters}
    assert plan["steps"] == record["steps"]


def test_a_run_tells_its_plan_first(flowblend: Callable[..., Any], run_pair: list[str]) -> None:
    result = flowblend(*run_pair, "--adapter", "unipc(sigmas=(0.9, 0.6, 0.4, 0.2, 0.1))")
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == f"{run_pair[2]}, LSL: L 1-2, S 3-4, L 5"


def test_a_solver_that_the_pipeline_does_not_take_is_refused_by_the_plan_too(
    flowblend: Callable[..., Any], run_pair: list[str]
) -> None:
    result = flowblend(*run_pair, "--adapter", "deis(sigmas=(0.9, 0.5))", "--dry-run")
    assert result.code == 2
    assert "'flow_euler', 'unipc'" in result.error_line
