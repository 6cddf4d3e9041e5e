"""The training code on tiny settings: that it learns, resumes, and averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from flowblend_compat_matrix.reference.world import WORLD
from flowblend_research.training.checkpoints import keep
from flowblend_research.training.latents import drawing, encode_shard, load_dataset
from flowblend_research.training.optimiser import Muon, orthogonalise
from flowblend_research.training.stage import Stage, StageSettings, learning_rate_factor
from flowblend_research.training.trainer import Job, is_complete
from flowblend_research.training.wan import train
from flowblend_research.training.wan.codec import codec_loss, decode_unclamped, encode_mean, make_codec, use_fast_norms
from flowblend_research.training.wan.denoisers import SMALL, flow_matching_loss, make_denoiser, sample_sigmas


def silent(record, progress):
    pass


def make_stage(folder, seed=0, minutes=1.0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 1))
    settings = StageSettings(minutes=minutes, learning_rate=1e-2, matrix_learning_rate=0.02, warmup_steps=1)
    stage = Stage("toy", module, folder, settings)

    def loss(step):
        x = torch.from_numpy(np.random.default_rng(step).standard_normal((32, 4)).astype(np.float32))
        return (module(x) - x.sum(dim=1, keepdim=True)).square().mean()

    return stage, loss


def test_a_stage_that_stopped_goes_on_as_if_it_had_not(tmp_path):
    whole, loss = make_stage(tmp_path / "whole", minutes=1e6)
    whole.run(loss, silent, max_steps=20)
    half, loss = make_stage(tmp_path / "parts", minutes=1e6)
    half.run(loss, silent, max_steps=10)
    rest, loss = make_stage(tmp_path / "parts", seed=1, minutes=1e6)  # other initial weights: all comes from the file
    assert rest.record.steps == 10
    rest.run(loss, silent, max_steps=10)
    assert rest.record.steps == 20
    for key, value in whole.average.items():
        torch.testing.assert_close(rest.average[key], value, rtol=1e-4, atol=1e-6)


def test_a_stage_learns_and_ends_with_its_moving_average(tmp_path):
    stage, loss = make_stage(tmp_path)
    before = float(loss(999).detach())
    stage.run(loss, silent, max_steps=200)
    assert float(loss(999).detach()) < 0.2 * before
    for key, value in stage.module.state_dict().items():
        assert torch.equal(value, stage.average[key])


def test_a_stage_stops_when_its_time_is_used_up(tmp_path):
    stage, loss = make_stage(tmp_path, minutes=0.5 / 60)
    stage.run(loss, silent)
    assert 0.5 <= stage.record.seconds < 3.0
    assert is_complete(train.RECIPE, Job(name="text", out=tmp_path / "x", minutes=0.0)) is False


def test_a_small_checkpoint_goes_on_from_the_moving_average(tmp_path):
    stage, loss = make_stage(tmp_path / "out" / "toy", minutes=1e6)
    stage.run(loss, silent, max_steps=5)
    assert keep(tmp_path / "out", tmp_path / "kept") == ["toy"]
    again, loss = make_stage(tmp_path / "kept" / "toy", seed=1, minutes=1e6)
    assert again.record.steps == 5
    for key, value in again.module.state_dict().items():
        torch.testing.assert_close(value, stage.average[key], rtol=1e-3, atol=1e-3)
    again.run(loss, silent, max_steps=5)
    assert again.record.steps == 10


def test_a_step_without_a_finite_gradient_is_left_out_and_too_many_are_an_error(tmp_path):
    stage, loss = make_stage(tmp_path, minutes=1e6)
    stage.run(loss, silent, max_steps=3)
    before = {key: value.clone() for key, value in stage.average.items()}
    stage.run(lambda step: loss(step) * float("nan"), silent, max_steps=5)
    assert stage.record.facts["skipped_steps"] == 5
    assert np.isfinite(stage.record.loss)
    for key, value in stage.average.items():
        assert torch.equal(value, before[key])
    with pytest.raises(FloatingPointError, match="gradients were not finite"):
        stage.run(lambda step: loss(step) * float("nan"), silent)


def test_the_learning_rate_warms_up_holds_and_falls():
    settings = StageSettings(minutes=1, learning_rate=1.0, warmup_steps=10, decay_start=0.5)
    assert learning_rate_factor(0, 0.0, settings) == pytest.approx(0.1)
    assert learning_rate_factor(100, 0.5, settings) == 1.0
    assert learning_rate_factor(100, 0.75, settings) == pytest.approx(0.01 + 0.99 * 0.5)
    assert learning_rate_factor(100, 1.0, settings) == pytest.approx(0.01)


def test_orthogonalised_matrices_have_singular_values_near_one():
    for shape in ((2, 16, 48), (3, 48, 16), (1, 32, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape, generator=torch.Generator().manual_seed(0))))
        assert values.max() < 1.35
        assert values.median() > 0.6


def test_muon_moves_every_weight_it_is_given():
    weights = [
        nn.Parameter(torch.ones(4, 3, 1, 1)),
        nn.Parameter(torch.ones(4, 3, 1, 1)),
        nn.Parameter(torch.ones(2, 8)),
    ]
    optimiser = Muon(weights, lr=0.1)
    sum(weight.square().sum() for weight in weights).backward()
    optimiser.step()
    assert all((weight < 1.0).any() for weight in weights)


def test_decoding_without_the_clamp_is_diffusers_decoding_before_its_clamp():
    codec = make_codec().eval()
    latents = torch.randn(1, 12, 3, 4, 4)
    with torch.no_grad():
        ours, theirs = decode_unclamped(codec, latents), codec.decode(latents).sample
        torch.testing.assert_close(ours.clamp(-1, 1), theirs)
        use_fast_norms(codec)
        torch.testing.assert_close(codec.decode(latents).sample, theirs, rtol=1e-3, atol=1e-4)


def test_the_codec_loss_reaches_every_parameter():
    codec = make_codec()
    codec_loss(codec, torch.rand(1, 3, 9, 32, 32) * 2 - 1, step=1000).backward()
    assert all(parameter.grad is not None for parameter in codec.parameters())


def test_sigmas_are_uniform_before_the_shift():
    sigmas = sample_sigmas(20_000, torch.Generator().manual_seed(0))
    unshifted = sigmas / (3.0 - 2.0 * sigmas)
    assert sigmas.min() >= 0.0
    assert sigmas.max() <= 1.0
    assert unshifted.mean() == pytest.approx(0.5, abs=0.01)
    assert unshifted.std() == pytest.approx(12**-0.5, abs=0.01)


def test_a_denoiser_that_says_nothing_has_the_loss_of_the_data_and_the_noise():
    class Silent(nn.Module):
        def forward(self, latents, timestep, prompts, return_dict):
            assert timestep.min() >= 0
            assert timestep.max() <= 1000
            return (torch.zeros_like(latents),)

    latents = torch.randn(64, 12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = flow_matching_loss(Silent(), latents, torch.zeros(64, 32, 64), torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(2.0, rel=0.02)


def test_one_denoiser_step_lowers_the_loss_on_its_own_batch(tmp_path):
    torch.manual_seed(0)
    denoiser = make_denoiser(SMALL)
    latents, prompts = torch.randn(4, 12, 3, 8, 8), torch.randn(4, 32, 64)
    settings = StageSettings(minutes=1, learning_rate=1e-3, matrix_learning_rate=None, warmup_steps=1)
    stage = Stage("small", denoiser, tmp_path, settings)
    losses = []

    def loss(step):
        value = flow_matching_loss(denoiser, latents, prompts, torch.Generator().manual_seed(0))
        losses.append(float(value.detach()))
        return value

    stage.run(loss, silent, max_steps=5)
    assert losses[-1] < losses[0]


def test_data_is_encoded_once_and_the_same_each_time(tmp_path):
    codec = make_codec().eval()

    def encode(folder):
        encode_shard(folder, 0, 3, drawing(WORLD), lambda videos: encode_mean(codec, videos))

    for folder in ("a", "b"):
        encode(tmp_path / folder)
    first, second = load_dataset(tmp_path / "a"), load_dataset(tmp_path / "b")
    assert torch.equal(first.latents, second.latents)
    assert first.captions == second.captions
    assert first.latents.shape == (3, 12, 3, 8, 8)
    stamp = (tmp_path / "a" / "latents-000.safetensors").stat().st_mtime_ns
    encode(tmp_path / "a")
    assert (tmp_path / "a" / "latents-000.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(FileNotFoundError, match="run the stage 'data' first"):
        load_dataset(tmp_path / "c")
