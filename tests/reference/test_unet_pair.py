"""The second reference pair: its parts hold together, training goes on where it stopped, and what ships is loadable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flowblend_plugins as fb
from flowblend_compat_matrix.plugin import REFERENCE_UNET
from flowblend_compat_matrix.reference.pair import evaluation_captions
from flowblend_compat_matrix.reference.unet import CALL_DEFAULTS, WEIGHTS, UNetPair, load_unet_pair
from flowblend_research.training.latents import load_dataset
from flowblend_research.training.text import vocabulary
from flowblend_research.training.trainer import Job, run_job
from flowblend_research.training.unet import train
from flowblend_research.training.unet.behaviour import (
    SETTINGS,
    Row,
    Setting,
    alignment,
    fidelity,
    make_stills,
    measure,
    to_markdown,
    true_stills,
)
from flowblend_research.training.unet.codec import LATENT_CHANNELS, LATENT_SIZE, make_codec, still_batch
from flowblend_research.training.unet.denoisers import LARGE, SMALL, make_denoiser, noise_loss
from flowblend_research.training.unet.text import MAX_LENGTH, make_tokenizer

NUM_GUARDED = 8
"""Prompts of the behaviour card that are measured again."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage in turn for two steps, and the weights exported."""
    out = tmp_path_factory.mktemp("unet-pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SHARD_SIZE", 48)
        for name in (name for phase in train.RECIPE.phases for name in phase):
            run_job(train.RECIPE, Job(name=name, out=out, max_steps=2))
    train.RECIPE.export(out, out / "weights")
    return out


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = make_tokenizer()
    words = [word for word in vocabulary() if word.isalpha()]
    assert [tokenizer.tokenize(" ".join(words))] == [[f"{word}</w>" for word in words]]
    assert len(tokenizer.tokenize("zebra")) == 5  # others are spelt out
    longest = max((item.text for item in evaluation_captions(200)), key=lambda text: len(text.split()))
    assert len(tokenizer(longest).input_ids) == len(longest.split()) + 2 <= MAX_LENGTH


def test_the_codec_gives_latents_of_a_sixteenth_of_the_area() -> None:
    codec = make_codec()
    images = still_batch((1,), 2)
    assert images.shape == (2, 3, 64, 64)
    assert -1.0 <= images.min() < -0.5
    assert 0.5 < images.max() <= 1.0
    latents = codec.encode(images).latent_dist.mode()  # type: ignore[union-attr]
    assert latents.shape == (2, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)


def test_the_large_unet_is_several_times_the_small_one() -> None:
    sizes = [sum(parameter.numel() for parameter in make_denoiser(size).parameters()) for size in (LARGE, SMALL)]
    assert 4.0 < sizes[0] / sizes[1] < 8.0


def test_the_loss_asks_for_the_noise() -> None:
    seen: list[torch.Tensor] = []

    class Zero(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, prompts: torch.Tensor, **_: object) -> object:
            seen.append(noisy)
            return (torch.zeros_like(noisy),)

    latents = torch.zeros(64, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    loss = noise_loss(Zero(), latents, torch.zeros(64, 16, 64), torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(1.0, abs=0.02)  # the variance of the noise, whatever its level
    assert float(seen[0].std(dim=(1, 2, 3)).min()) < 0.3 < 0.9 < float(seen[0].std(dim=(1, 2, 3)).max())


def test_training_goes_on_where_it_stopped(trained: Path) -> None:
    run_job(train.RECIPE, Job(name="small", out=trained, max_steps=1))
    assert json.loads((trained / "small" / "record.json").read_text())["steps"] == 3


def test_the_latents_come_to_unit_variance(trained: Path) -> None:
    pipeline = load_unet_pair(trained / "weights").pipeline
    latents = load_dataset(trained / "data").latents.float() * pipeline.vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1.0, abs=1e-3)


def test_what_is_exported_is_safetensors_under_12_mb_and_blends(trained: Path) -> None:
    files = [path for path in (trained / "weights").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
    assert sum(path.stat().st_size for path in files) < 12e6
    pair = load_unet_pair(trained / "weights")
    call = {**CALL_DEFAULTS, "num_inference_steps": 5, "output_type": "np"}
    with fb.enable(pair.pipeline, trained / "weights" / "small", "LSL", adapters=["deepcache(interval=2)"]) as blend:
        images = pair.pipeline("a red circle", generator=torch.Generator().manual_seed(0), **call).images
    assert images.shape == (1, 64, 64, 3)
    assert blend.trace.last is not None
    assert "".join(call.step.denoiser + call.outcome[0] for call in blend.trace.last.calls) == "LcLrScSrLc"


def test_the_card_compares_every_row_with_large_only(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CALL_DEFAULTS, "num_inference_steps", 4)
    pair = load_unet_pair(trained / "weights")
    from flowblend_research.training.unet import behaviour

    settings = (behaviour.Setting("LLL", None, (), 4), behaviour.Setting("again", "LLL", (), 4))
    monkeypatch.setattr(behaviour, "SETTINGS", (*settings, behaviour.Setting("SSS", "SSS", (), 4)))
    world, large, again, small = measure(pair, 2)
    assert world.alignment > 0.5  # the classifier can read stills
    assert large.psnr_db is None
    assert again.psnr_db == float("inf")
    assert small.psnr_db is not None
    assert small.psnr_db < 40.0
    table = to_markdown([world, large, again, small])
    assert table.count("\n") == 6
    assert "| SSS |" in table


def test_a_still_depends_on_its_number_alone(trained: Path) -> None:
    pair, captions = load_unet_pair(trained / "weights"), evaluation_captions(2)
    both = make_stills(pair, captions, Setting("LLL", None, (), 2))
    one = make_stills(pair, captions[:1], Setting("LLL", None, (), 2))
    assert both.shape == (2, 64, 64, 3)
    torch.testing.assert_close(torch.from_numpy(both[0]), torch.from_numpy(one[0]), atol=1e-4, rtol=0)


def test_the_true_stills_are_those_the_captions_were_said_of() -> None:
    assert true_stills(2).shape == (2, 64, 64, 3)
    row = Row(name="x", psnr_db=None, psnr_by_prompt_db=(), ssim=None, alignment=0.5)
    assert to_markdown([row]).endswith("| x | - | - | 0.500 |\n")


@pytest.fixture(scope="module")
def shipped() -> UNetPair:
    return load_unet_pair()


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads((WEIGHTS / "behaviour_card.json").read_text())


@pytest.fixture(scope="module")
def large_only(shipped: UNetPair) -> Any:
    return make_stills(shipped, evaluation_captions(NUM_GUARDED), SETTINGS[0])


def row_of(card: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in card["rows"] if row["name"] == name)


def test_the_preset_and_the_card_say_what_the_package_says(card: dict[str, Any]) -> None:
    assert dict(REFERENCE_UNET.call_defaults) == CALL_DEFAULTS
    assert (REFERENCE_UNET.large, REFERENCE_UNET.small) == (WEIGHTS / "large", WEIGHTS / "small")
    assert {name: card[name] for name in CALL_DEFAULTS} == CALL_DEFAULTS
    assert [row["name"] for row in card["rows"][1:]] == [setting.name for setting in SETTINGS]


@pytest.mark.parametrize("setting", [SETTINGS[1], SETTINGS[2], SETTINGS[4], SETTINGS[7]], ids=lambda s: s.name)
def test_the_shipped_weights_do_what_the_card_says(
    setting: Setting, shipped: UNetPair, card: dict[str, Any], large_only: Any
) -> None:
    stills = make_stills(shipped, evaluation_captions(NUM_GUARDED), setting)
    on_the_card = row_of(card, setting.name)["psnr_by_prompt_db"][:NUM_GUARDED]
    assert fidelity(stills, large_only)["psnr_db"] == pytest.approx(np.mean(on_the_card), abs=0.75)


def test_the_large_one_shows_more_of_its_captions_than_the_small_one(card: dict[str, Any], large_only: Any) -> None:
    said = {row["name"]: row["alignment"] for row in card["rows"]}
    assert said["small only (SSS)"] + 0.05 < said["large only (LLL)"] < said["the world's own stills"]
    assert alignment(large_only, evaluation_captions(NUM_GUARDED)) > 0.6


def test_a_folder_without_the_pair_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"large/ is missing; train one with"):
        load_unet_pair(tmp_path)
