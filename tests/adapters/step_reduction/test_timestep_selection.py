"""Selecting noise levels: the search against trying everything, the dense run against its own result, the command."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flowblend_plugins as fb
from flowblend_adapters.step_reduction.selected_timesteps import dense_run
from flowblend_adapters.step_reduction.selected_timesteps.dense_run import select_timesteps
from flowblend_adapters.step_reduction.selected_timesteps.selection import select_levels
from flowblend_adapters.step_reduction.selected_timesteps.stored import SelectedTimesteps
from flowblend_plugins.testing import PipelineSnapshot, generate, tiny_wan_pipeline
from tests.adapters.step_reduction.solvers_by_hand import FLOW
from tests.conftest import Result
from tests.exactness.pipelines import FAMILIES, STABLE_DIFFUSION

WAN = FAMILIES["wan"]


def summed_error(levels: np.ndarray, velocities: np.ndarray, chosen: tuple[int, ...]) -> float:
    """By its definition: along the dense states, how far each Euler step lands from the state it should reach."""
    states = [np.zeros(velocities.shape[1])]
    for k, velocity in enumerate(velocities):
        states.append(states[-1] + (levels[k + 1] - levels[k]) * velocity)
    error = 0.0
    for k, j in itertools.pairwise((*chosen, len(velocities))):
        error += np.linalg.norm(states[k] + (levels[j] - levels[k]) * velocities[k] - states[j])
    return error


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_trying_everything_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_dense = 8
    levels = np.append(np.sort(generator.uniform(0.05, 1.0, num_dense))[::-1], 0.0)
    velocities = np.cumsum(generator.normal(size=(num_dense, 5)), axis=0)
    found = select_levels(list(levels[:-1]), velocities @ velocities.T, [1, 3, 5, 8])
    assert found[1] == [0]
    assert found[8] == list(range(8))
    for count in (3, 5):
        every = [(0, *rest) for rest in itertools.combinations(range(1, num_dense), count - 1)]
        best = min(every, key=lambda chosen: summed_error(levels, velocities, chosen))
        assert summed_error(levels, velocities, tuple(found[count])) == pytest.approx(
            summed_error(levels, velocities, best)
        )


def test_a_velocity_that_turns_once_is_sampled_where_it_turns() -> None:
    velocities = np.array([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 4)
    sigmas = np.linspace(1.0, 0.1, 10)
    assert select_levels(sigmas.tolist(), velocities @ velocities.T, [2])[2] == [0, 6]


@pytest.mark.parametrize("counts", [[0], [11], [3, 11]])
def test_a_count_that_cannot_be_is_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 10"):
        select_levels(np.linspace(1, 0.1, 10).tolist(), np.eye(10), counts)


def call_of(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {**WAN.arguments(1), "generator": generator, "output_type": "latent", "guidance_scale": 5.0}


def test_what_is_watched_is_the_velocity_that_the_sampler_goes_along() -> None:
    """Noise plus the steps along what was seen is the result of diffusers' Euler, guidance included."""
    pipe, plain = WAN.pipe(), WAN.pipe()
    plain.scheduler = FLOW["flow_euler"](3.0)
    with torch.no_grad(), dense_run._watched(pipe) as velocities:
        pipe(**call_of(), num_inference_steps=7)
        widths = pipe.scheduler.sigmas.diff()
    latents = generate(plain, 7)
    start = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = plain(**call_of(), num_inference_steps=7).frames
    moved = sum(width * velocity for width, velocity in zip(widths, velocities, strict=True))
    assert torch.allclose(start + moved, result, atol=1e-5)


def test_a_selection_is_of_the_dense_levels_and_leaves_the_pipeline_as_it_was(tmp_path: Path) -> None:
    pipe = WAN.pipe()
    before = generate(pipe, 4)
    snapshot = PipelineSnapshot.of(pipe)
    with torch.no_grad():
        selected = select_timesteps(pipe, calls=[call_of(0), call_of(1)], num_dense_steps=10, num_steps=[10, 4])
    dense = FLOW["flow_euler"](3.0)
    dense.set_timesteps(10)
    assert list(selected.selections[10]) == dense.sigmas[:-1].tolist()
    assert {*selected.selections[4]} < {*selected.selections[10]}
    assert selected.selections[4][0] == selected.selections[10][0]
    assert (selected.num_generations, selected.guidance_scale) == (2, 5.0)
    assert torch.equal(generate(pipe, 4), before)
    assert not snapshot.differences(pipe)

    path = tmp_path / "selected.json"
    path.write_text(json.dumps(selected.to_json()))
    assert SelectedTimesteps.read(path) == selected
    by_file, by_list = WAN.pipe(), WAN.pipe()
    with fb.enable(by_file, schedule="LLL", adapters=[f"flow_euler(timesteps={str(path)!r}, num_inference_steps=10)"]):
        dense_again = generate(by_file, None)
    by_list.scheduler = dense
    assert torch.allclose(dense_again, generate(by_list, 10), atol=1e-5)


def test_a_pipeline_that_fails_in_a_dense_run_has_its_own_sampler_back() -> None:
    pipe = WAN.pipe()
    scheduler, config, expected = pipe.scheduler, pipe._internal_dict, generate(pipe, 4)

    def stumble(*arguments: Any) -> None:
        raise KeyboardInterrupt

    call = call_of() | {"callback_on_step_end": stumble}
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        select_timesteps(pipe, calls=[call], num_dense_steps=4, num_steps=[2])
    assert pipe.scheduler is scheduler
    assert pipe._internal_dict is config
    assert torch.equal(generate(pipe, 4), expected)


def test_a_denoiser_that_is_no_flow_is_refused() -> None:
    with pytest.raises(fb.StackError, match="for flow-matching denoisers"):
        select_timesteps(STABLE_DIFFUSION.pipe(), calls=[{}], num_dense_steps=4, num_steps=[2])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "'technique' is missing"),
        ('{"technique": "mag_cache"}', "it is of mag_cache"),
        ('{"technique": "timesteps", "selections": {"2": [0.5, 0.9]}}', "has not 2 numbers that fall"),
    ],
)
def test_a_file_that_holds_none_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(fb.AdapterError, match="flowblend calibrate timesteps") as refused:
        fb.enable(tiny_wan_pipeline(), adapters=[f"unipc(timesteps={str(path)!r}, num_inference_steps=2)"])
    assert told in str(refused.value)


def test_the_command(flowblend: Callable[..., Result], saved_pair: Path, tmp_path: Path) -> None:
    out, pair = tmp_path / "timesteps.json", ("--large", saved_pair / "large")
    size = ("--prompt", "a red circle", "--height", "32", "--width", "32", "--num-frames", "9")
    result = flowblend("calibrate", "timesteps", *pair, *size, "--dense-steps", "8", "--steps", "3", "--out", out)
    assert result.code == 0, result.err
    sigmas = SelectedTimesteps.read(out).sigmas(3)
    assert f"3 steps: {', '.join(f'{sigma:.3g}' for sigma in sigmas)}" in result.out
    adapter = f"unipc(timesteps={str(out)!r}, num_inference_steps=3)"
    small = ("--small", saved_pair / "small")
    plan = flowblend("run", *pair, *small, *size, "--adapter", adapter, "--dry-run", "--json")
    assert plan.code == 0, plan.err
    assert np.allclose(json.loads(plan.out)["sigmas"], sigmas, atol=1e-5)


def test_the_command_refuses_more_steps_than_the_dense_run_has(flowblend: Callable[..., Result]) -> None:
    result = flowblend("calibrate", "timesteps", "--dense-steps", "8", "--steps", "9")
    assert result.code == 2
    assert "--steps 9 of --dense-steps 8" in result.error_line
