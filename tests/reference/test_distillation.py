"""Distilling the reference pair: its trajectories, its training, and what ships against its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from flowblend_compat_matrix.measuring.metrics import psnr_db
from flowblend_compat_matrix.plugin import REFERENCE
from flowblend_compat_matrix.reference import CALL_DEFAULTS, evaluation_captions, load_classifier, load_pair
from flowblend_research.training.distillation import DISTILLED, train, trajectories
from flowblend_research.training.distillation.behaviour import CARD, SETTINGS, Row, make_videos, to_markdown
from flowblend_research.training.trainer import Job, run_job

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
NUM_PROMPTS = 6
KINDS = [(side, count) for side in train.SIDES for count in train.STEP_COUNTS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small denoiser distilled for two steps of training, and the LoRAs exported."""
    out = tmp_path_factory.mktemp("distilled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories, "SHARD_SIZE", 2)
        patch.setattr(train, "compiled", lambda module, device: module)
        run_job(train.RECIPE, Job(name="small-trajectories", out=out, num_shards=2))
        for count in train.STEP_COUNTS:
            run_job(train.RECIPE, Job(name=f"small-{count}", out=out, max_steps=2))
            train.export_lora(out, "small", count, out / "weights" / f"small-{count}")
    return out


def test_a_trajectory_is_the_guided_samplers_own(trained: Path) -> None:
    pair = load_pair()
    data = trajectories.load_trajectories(trained / "small-trajectories", trajectories.window_sigmas(pair, 8))
    assert data.states.shape == (4, 9, 12, 3, 8, 8)
    pair.pipeline.transformer = pair.small
    pair.pipeline.set_progress_bar_config(disable=True)
    call = {**CALL_DEFAULTS, "num_inference_steps": 24, "output_type": "latent", "return_dict": False}
    made = pair.pipeline(data.captions[:2], latents=data.states[:2, 0].float(), **call)[0]
    # The noise was kept in half precision, which guidance amplifies.
    assert (made - data.states[:2, -1].float()).abs().mean() < 0.02 * made.abs().mean()


def test_windows_of_four_steps_are_pairs_of_those_of_eight() -> None:
    pair = load_pair()
    eight, four = (trajectories.window_sigmas(pair, count) for count in (8, 4))
    assert four == eight[::2]
    assert eight == pytest.approx(np.linspace(1.0, 0.0, 9), abs=2e-3)


def test_training_goes_on_where_it_stopped(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "compiled", lambda module, device: module)
    run_job(train.RECIPE, Job(name="small-8", out=trained, max_steps=1))
    assert json.loads((trained / "small-8" / "record.json").read_text())["steps"] == 3


def test_what_is_exported_loads_as_any_lora_does(trained: Path) -> None:
    small = load_pair().small
    latents, prompt = torch.randn(1, 12, 3, 8, 8), torch.randn(1, 4, 64)
    before = small(latents, torch.tensor([500.0]), prompt, return_dict=False)[0]
    small.load_lora_adapter(trained / "weights" / "small-8", prefix="transformer", weight_name=WEIGHTS_FILE)
    after = small(latents, torch.tensor([500.0]), prompt, return_dict=False)[0]
    assert not torch.equal(before, after)
    said = json.loads((trained / "weights" / "small-8" / "distilled.json").read_text())
    assert (said["num_inference_steps"], len(said["sigmas"]), said["sampler"]) == (8, 8, "euler")


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads(CARD.read_text())


def row_of(card: dict[str, Any], side: str, name: str) -> dict[str, Any]:
    return next(row for row in card["rows"] if (row["side"], row["name"]) == (side, name))


@pytest.mark.parametrize(("side", "count"), KINDS)
def test_what_ships_is_small_and_named_by_the_pair(side: str, count: int) -> None:
    folder = DISTILLED / f"{side}-{count}"
    assert REFERENCE.distilled[f"{side}-{count}"] == folder
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6


@pytest.mark.parametrize(("side", "count"), KINDS)
def test_distilled_is_clearly_better_than_as_few_steps_undistilled(card: dict[str, Any], side: str, count: int) -> None:
    distilled = row_of(card, side, f"{count} steps, distilled")
    for sampler in ("UniPC", "Euler"):
        undistilled = row_of(card, side, f"{count} steps, {sampler}")
        assert distilled["frechet_distance"] < undistilled["frechet_distance"]
        assert np.mean(distilled["psnr_by_prompt_db"]) > np.mean(undistilled["psnr_by_prompt_db"]) + 0.5
        assert distilled["num_calls"] == count == undistilled["num_calls"] / 2


@pytest.mark.parametrize(("side", "count"), KINDS)
def test_the_shipped_weights_do_what_the_card_says(card: dict[str, Any], side: str, count: int) -> None:
    pair, captions = load_pair(), evaluation_captions(NUM_PROMPTS)
    setting = next(one for one in SETTINGS if one.name == f"{count} steps, distilled")
    videos, num_calls = make_videos(pair, captions, side, setting)
    long, _ = make_videos(pair, captions, side, SETTINGS[0])
    assert num_calls == count
    found = np.mean([psnr_db(a, b) for a, b in zip(videos, long, strict=True)])
    said = row_of(card, side, setting.name)["psnr_by_prompt_db"][:NUM_PROMPTS]
    assert found == pytest.approx(np.mean(said), abs=0.75)
    assert load_classifier().alignment(videos, [item.attributes for item in captions]) > 0.5


def test_the_large_lora_by_hand_is_the_adapter() -> None:
    """diffusers alone: the LoRA loaded, Euler's method, guidance off, the noise levels of distilled.json."""
    folder = DISTILLED / "large-8"
    sigmas = json.loads((folder / "distilled.json").read_text())["sigmas"]
    pair, captions = load_pair(), evaluation_captions(1)
    setting = next(one for one in SETTINGS if one.name == "8 steps, distilled")
    expected, _ = make_videos(pair, captions, "large", setting)

    pipeline = load_pair().pipeline
    pipeline.load_lora_weights(folder)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=1.0)
    set_timesteps = scheduler.set_timesteps
    scheduler.set_timesteps = lambda num_inference_steps, device=None: set_timesteps(sigmas=sigmas, device=device)
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    call = {**CALL_DEFAULTS, "num_inference_steps": 8, "guidance_scale": 1.0}
    generator = torch.Generator().manual_seed(0)
    made = pipeline(captions[0].text, generator=generator, output_type="np", return_dict=False, **call)[0]
    np.testing.assert_allclose(made, expected, atol=2e-3)


def test_the_table_has_a_line_for_each_row() -> None:
    row = Row(side="large", name="x", num_calls=8, alignment=0.5, frechet_distance=2.0, psnr_by_prompt_db=(20.0, 30.0))
    assert to_markdown([row]).endswith("| large | x | 8 | 50.0% | 2.00 | 25.0 |\n")
