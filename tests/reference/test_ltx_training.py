"""The world of the LTX pair and its training code on tiny settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXPipeline
from torch import nn

from flowblend_compat_matrix.reference.ltx.world import LTX_WORLD, power_law_field
from flowblend_compat_matrix.reference.world import caption
from flowblend_research.training.latents import drawing, encode_shard, load_dataset
from flowblend_research.training.ltx import train
from flowblend_research.training.ltx.codec import (
    codec_batch,
    codec_loss,
    encode_mean,
    make_codec,
    normalise,
    use_fast_norms,
)
from flowblend_research.training.ltx.denoisers import (
    NUM_TOKENS,
    SMALL,
    DenoiserSize,
    flow_matching_loss,
    make_denoiser,
    video_coordinates,
)
from flowblend_research.training.ltx.export import SHAPED, export, load_codec, make_scheduler
from flowblend_research.training.ltx.shaping import shape_latents, write_shaped
from flowblend_research.training.ltx.text import LTXTextTrainer, encode_text

CPU = torch.device("cpu")
TINY = DenoiserSize(num_heads=1, num_layers=1)


def make_pipeline(cls, denoiser):
    text = LTXTextTrainer()
    scheduler = make_scheduler() if cls is LTXPipeline else FlowMatchEulerDiscreteScheduler()
    pipeline = cls(
        scheduler=scheduler,
        vae=make_codec().eval(),
        text_encoder=text.encoder.eval(),
        tokenizer=text.tokenizer,
        transformer=denoiser,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, text


def call_of_a_pipeline(cls, **more):
    """The first call of the denoiser that a pipeline makes, as keywords."""
    torch.manual_seed(0)
    denoiser = make_denoiser(TINY).eval()
    pipeline, text = make_pipeline(cls, denoiser)
    calls = []
    forward = denoiser.forward

    def recording(*args, **kwargs):
        calls.append(kwargs)
        return forward(*args, **kwargs)

    denoiser.forward = recording
    pipeline(
        prompt="a red circle moving left",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=32,
        output_type="latent",
        **more,
    )
    return calls[0], text


def call_of_the_training(condition, **more):
    """The call of the denoiser that the loss makes, as keywords."""
    calls = []

    class Recording(nn.Module):
        def forward(self, hidden_states, encoder_hidden_states, timestep, encoder_attention_mask, **kwargs):
            calls.append({"timestep": timestep, "encoder_attention_mask": encoder_attention_mask, **kwargs})
            return (torch.zeros_like(hidden_states),)

    latents = torch.randn(2, NUM_TOKENS, 64, generator=torch.Generator().manual_seed(1))
    loss = flow_matching_loss(
        Recording(),
        latents,
        torch.zeros(2, 32, 64),
        torch.ones(2, 32).bool(),
        torch.Generator().manual_seed(0),
        condition_fraction=1.0 if condition else 0.0,
    )
    assert float(loss) == pytest.approx(2.0, rel=0.1)  # nothing said: the data and the noise
    return calls[0]


def test_detail_has_the_spectrum_that_was_asked_for():
    rng = np.random.default_rng(0)
    fields = np.stack([power_law_field(rng, 1.25) for _ in range(64)])
    assert fields.std(axis=(1, 2)) == pytest.approx(1.0, abs=1e-4)
    power = (np.abs(np.fft.fft2(fields)) ** 2).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None]) * 64
    rings = [power[(frequency >= low) & (frequency < 1.25 * low)].mean() for low in (4, 8, 16)]
    slopes = np.diff(np.log2(rings))
    assert slopes == pytest.approx([-2.5, -2.5], abs=0.25)


def test_a_scene_is_the_same_for_a_seed_and_its_detail_moves_with_what_carries_it():
    rng = np.random.default_rng(3)
    scenes = [LTX_WORLD.sample_scene(rng) for _ in range(200)]
    assert scenes[0] == LTX_WORLD.sample_scene(np.random.default_rng(3))
    for scene in scenes:
        pan = scene.background.pan
        video = LTX_WORLD.render(scene)
        assert video.shape == (5, 32, 32, 3)
        assert 0.0 <= video.min() <= video.max() <= 1.0
        if pan == (1.0, 0.0) and len(scene.objects) == 1 and scene.objects[0].motion == "still":
            moved = np.abs(video[1, :, 1:] - video[0, :, :-1]).max(axis=-1)
            assert (moved < 1e-6).mean() > 0.5  # the background, exactly; not the object, which stands
            return
    pytest.fail("no scene of 200 had a panning background and one object that stands")


def test_captions_are_those_of_the_first_world():
    rng = np.random.default_rng(5)
    words = {word for _ in range(200) for word in caption(LTX_WORLD.sample_scene(rng), rng).text.split()}
    known = LTXTextTrainer().tokenizer.get_vocab()
    assert words <= set(known)
    assert {"red", "circle", "striped", "left", "still", "blobs"} <= words


def test_the_codec_loss_reaches_every_parameter_and_the_fast_norms_are_the_norms():
    torch.manual_seed(0)
    codec = make_codec()
    videos = codec_batch(1000, 0, 2, CPU)
    assert videos.shape == (2, 3, 5, 32, 32)
    assert codec_batch(0, 0, 2, CPU).shape == (4, 3, 1, 32, 32)
    with torch.no_grad():
        slow = codec.decode(codec.encode(videos).latent_dist.mode()).sample
        use_fast_norms(codec)
        fast = codec.decode(codec.encode(videos).latent_dist.mode()).sample
    torch.testing.assert_close(slow, fast, rtol=1e-3, atol=1e-4)
    codec_loss(codec, videos, step=1000).backward()
    assert all(parameter.grad is not None for parameter in codec.parameters())


def test_shaped_latents_decode_as_before_and_are_as_large_as_what_they_show():
    torch.manual_seed(0)
    codec = make_codec().eval()
    videos = codec_batch(1000, 0, 8, CPU)
    latents = encode_mean(codec, videos)
    before = codec.decode(latents).sample
    matrix = shape_latents(codec, videos)
    shaped = encode_mean(codec, videos)
    torch.testing.assert_close(shaped, torch.einsum("ij,nj...->ni...", matrix.float(), latents), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(codec.decode(shaped).sample, before, rtol=1e-2, atol=1e-3)
    spread = torch.cov(shaped.movedim(1, -1).reshape(-1, 64).T.double())
    deviations = spread.diagonal().sqrt()
    assert (deviations[:-1] >= deviations[1:] - 1e-6).all()
    assert (spread - spread.diagonal().diag()).abs().max() < 1e-2 * spread.max()


def test_the_denoiser_is_trained_as_ltx_pipeline_calls_it():
    call, _ = call_of_a_pipeline(LTXPipeline)
    trained = call_of_the_training(condition=False)
    for name in ("num_frames", "height", "width", "rope_interpolation_scale"):
        assert trained[name] == call[name]
    assert call["timestep"].ndim == trained["timestep"].ndim == 1
    assert call["encoder_attention_mask"].dtype == trained["encoder_attention_mask"].dtype


def test_the_denoiser_is_trained_as_ltx_condition_pipeline_calls_it():
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
    from PIL import Image

    given = LTXVideoCondition(image=Image.new("RGB", (32, 32)), frame_index=0)
    call, _ = call_of_a_pipeline(LTXConditionPipeline, conditions=[given])
    trained = call_of_the_training(condition=True)
    torch.testing.assert_close(video_coordinates()[None], call["video_coords"])
    assert call["timestep"].shape == (1, NUM_TOKENS)
    assert torch.equal(call["timestep"][0] == 0, trained["timestep"][0] == 0)
    assert (trained["timestep"][1] > 0).all()


def test_prompts_are_encoded_as_ltx_pipeline_encodes_them():
    pipeline, text = make_pipeline(LTXPipeline, make_denoiser(TINY))
    texts = ["a red circle", ""]
    hidden, mask = encode_text(text.tokenizer, text.encoder, texts)
    theirs, their_mask, *_ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=32)
    torch.testing.assert_close(hidden, theirs)
    assert torch.equal(mask, their_mask)


def test_what_is_exported_loads_as_the_pipelines_of_ltx_with_the_datas_statistics(tmp_path):
    torch.manual_seed(0)
    for folder in ("codec", "data"):
        (tmp_path / folder).mkdir()
    codec = make_codec().eval()
    write_shaped(codec, tmp_path / SHAPED)
    encode_shard(tmp_path / "data", 0, 4, drawing(LTX_WORLD), lambda videos: encode_mean(codec, videos))
    latents = load_dataset(tmp_path / "data").latents.float()
    assert latents.shape == (4, 64, 3, 4, 4)
    tokens = normalise(load_codec(tmp_path), latents)
    assert tokens.shape == (4, NUM_TOKENS, 64)
    torch.testing.assert_close(tokens.mean(dim=(0, 1)), torch.zeros(64), atol=1e-4, rtol=0)
    assert float(tokens.std()) == pytest.approx(1.0, abs=0.01)  # of all; of a channel: what it shows
    assert torch.equal(
        encode_mean(load_codec(tmp_path), videos := codec_batch(1000, 0, 1, CPU)), encode_mean(codec, videos)
    )
    weights = tmp_path / "weights"
    export(tmp_path, weights)
    for cls in (LTXPipeline, LTXConditionPipeline):
        pipeline = cls.from_pretrained(weights / "large", dtype=torch.float32)
        packed = pipeline._pack_latents(
            pipeline._normalize_latents(latents, pipeline.vae.latents_mean, pipeline.vae.latents_std)
        )
        torch.testing.assert_close(packed, tokens, atol=2e-2, rtol=1e-2)  # float16 weights


def test_a_token_is_at_most_half_of_the_small_denoisers_width():
    assert 2 * make_denoiser(SMALL).config["in_channels"] <= SMALL.num_heads * SMALL.head_dim


def test_the_recipe_names_a_builder_and_a_share_for_every_stage():
    recipe = train.RECIPE
    stages = {name for phase in recipe.phases for name in phase} - set(recipe.data)
    assert stages == set(recipe.modules) == set(recipe.shares) == set(recipe.settings)
    together = sum(max(recipe.shares.get(name, 0.0) for name in phase) for phase in recipe.phases)
    assert together <= 1.0
