"""The shipped pair: that it loads, is as large as it says, costs what it says, and that its judge can see."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from flowblend_compat_matrix.reference import (
    CALL_DEFAULTS,
    WEIGHTS,
    evaluation_captions,
    held_out_videos,
    load_classifier,
    load_pair,
)
from flowblend_research.training.wan.denoisers import forward_flops

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def pair():
    return load_pair()


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


def test_all_weights_together_are_under_24_megabytes_and_none_is_a_pickle():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24 * MEGABYTE
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}


def test_the_pair_loads_in_float32_for_use(pair):
    modules = (pair.pipeline.transformer, pair.pipeline.vae, pair.pipeline.text_encoder, pair.small)
    assert all(module.dtype == torch.float32 and not module.training for module in modules)
    assert type(pair.pipeline).__name__ == "WanPipeline"
    assert type(pair.pipeline.scheduler).__name__ == "UniPCMultistepScheduler"


def test_large_and_small_are_a_pair(pair):
    large, small = pair.pipeline.transformer.config, pair.small.config
    for name in ("in_channels", "out_channels", "patch_size", "text_dim"):
        assert large[name] == small[name]
    assert large.in_channels == pair.pipeline.vae.config.z_dim
    token_values = large.in_channels * int(np.prod(large.patch_size))
    assert token_values <= small.num_attention_heads * small.attention_head_dim / 2


def test_a_small_forward_costs_what_wan_1_3b_costs_beside_14b(pair):
    fraction = forward_flops(dict(pair.small.config)) / forward_flops(dict(pair.pipeline.transformer.config))
    assert 0.10 <= fraction <= 0.17


def test_a_call_gives_the_video_that_is_promised_and_the_same_again(pair):
    pair.pipeline.set_progress_bar_config(disable=True)
    call = {**CALL_DEFAULTS, "num_inference_steps": 3, "output_type": "np"}
    videos = [
        pair.pipeline("a red circle", generator=torch.Generator().manual_seed(0), **call).frames for _ in range(2)
    ]
    assert videos[0].shape == (1, 9, 64, 64, 3)
    assert np.array_equal(videos[0], videos[1])


def test_the_codec_keeps_world_videos_recognisable(pair):
    from flowblend_compat_matrix.measuring.metrics import psnr_db
    from flowblend_research.training.wan.card import through_codec

    videos = held_out_videos(16)
    assert psnr_db(through_codec(pair.pipeline.vae, videos), videos) > 24.0


def test_latents_are_normalised_by_the_statistics_in_the_codecs_config(pair):
    from flowblend_research.training.wan.codec import encode_mean, normalise

    videos = torch.from_numpy(held_out_videos(32)).permute(0, 4, 1, 2, 3) * 2.0 - 1.0
    latents = normalise(pair.pipeline.vae, encode_mean(pair.pipeline.vae, videos))
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 0.3
    assert (latents.std(dim=(0, 2, 3, 4)) - 1.0).abs().max() < 0.3


def test_the_classifier_finds_what_captions_name_in_fresh_world_videos(classifier):
    captions = evaluation_captions(64)
    videos = held_out_videos(64, seed=1000)  # the scenes of those captions
    right = [item.attributes for item in captions]
    assert classifier.alignment(videos, right) > 0.95
    assert classifier.alignment(videos[::-1].copy(), right) < 0.7


def test_the_classifier_says_nothing_good_of_noise(classifier):
    captions = evaluation_captions(16)
    noise = np.random.default_rng(0).random((16, 9, 64, 64, 3), dtype=np.float32)
    assert classifier.alignment(noise, [item.attributes for item in captions]) < 0.6


def test_classifier_features_are_small_and_one_video_needs_no_batch(classifier):
    features = classifier.features(held_out_videos(4))
    assert features.shape == (4, 48)
    np.testing.assert_allclose(classifier.features(held_out_videos(1)[0])[0], features[0], atol=1e-5)


def test_evaluation_captions_are_deterministic_and_the_first_ones_do_not_depend_on_how_many():
    assert evaluation_captions(3) == evaluation_captions(8)[:3]
    assert evaluation_captions(3) != evaluation_captions(3, seed=1001)


def test_a_folder_without_the_pair_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="large/ is missing"):
        load_pair(tmp_path)


def test_the_cards_lie_beside_the_weights():
    training = json.loads((WEIGHTS / "training_card.json").read_text())
    assert {"codec", "text", "classifier", "small", "large"} <= set(training["stages"])
    behaviour = json.loads((WEIGHTS / "behaviour_card.json").read_text())
    assert behaviour["num_prompts"] >= 64
    assert {row["name"] for row in behaviour["rows"]} >= {"LLL", "SSS", "SLL", "LSS", "LSL", "SSL", "half the steps"}
    page = (WEIGHTS / "behaviour_card.md").read_text()
    for item in behaviour["checks"]:
        assert item["aim"] in page
