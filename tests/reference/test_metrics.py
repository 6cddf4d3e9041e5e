"""Metrics against libraries that others wrote, and against cases that can be worked out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from flowblend_compat_matrix.measuring.metrics import flicker, frechet_distance, high_frequency_error, psnr_db, ssim
from flowblend_compat_matrix.reference import held_out_videos


@pytest.fixture(scope="module")
def videos():
    return held_out_videos(2)


def test_psnr_is_torchmetrics_psnr(videos):
    ours = psnr_db(videos[0], videos[1])
    theirs = peak_signal_noise_ratio(torch.from_numpy(videos[0]), torch.from_numpy(videos[1]), data_range=1.0)
    assert ours == pytest.approx(float(theirs), abs=1e-3)


def test_psnr_of_a_known_error(videos):
    dark = videos[0] * 0.5
    assert psnr_db(dark, dark + np.float32(0.1)) == pytest.approx(20.0, abs=1e-4)
    assert psnr_db(dark, dark) == float("inf")


def test_psnr_of_a_batch_is_the_mean_over_its_videos(videos):
    other = videos[::-1].copy()
    assert psnr_db(videos, other) == pytest.approx(psnr_db(videos[0], other[0]), abs=1e-6)


def test_ssim_agrees_with_torchmetrics(videos):
    noisy = np.clip(videos[0] + 0.05 * np.random.default_rng(0).standard_normal(videos[0].shape), 0, 1).astype(
        "float32"
    )
    a, b = (torch.from_numpy(v).permute(0, 3, 1, 2) for v in (videos[0], noisy))
    _, everywhere = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    inside = everywhere[..., 5:-5, 5:-5]  # torchmetrics pads at the border, scikit-image leaves it out
    assert ssim(videos[0], noisy) == pytest.approx(float(inside.mean()), abs=1e-4)
    assert ssim(videos[0], videos[0]) == pytest.approx(1.0)


def test_blur_and_noise_are_high_frequency_errors_and_a_shift_of_a_pixel_is_a_small_one(videos):
    video = videos[0]
    assert high_frequency_error(video, video) == 0.0
    blurred = gaussian_filter(video, sigma=1.5, axes=(1, 2))
    noisy = video + 0.1 * np.random.default_rng(0).standard_normal(video.shape).astype(np.float32)
    shifted = np.roll(video, 1, axis=2)
    small = high_frequency_error(shifted, video)
    assert small < 0.6 * high_frequency_error(blurred, video)
    assert small < 0.6 * high_frequency_error(noisy, video)


def test_flicker_is_nothing_for_steady_change_and_grows_with_alternation():
    ramp = np.linspace(0, 1, 9, dtype=np.float32)[:, None, None, None] * np.ones((1, 8, 8, 3), dtype=np.float32)
    assert flicker(ramp) == pytest.approx(0.0, abs=1e-6)
    alternating = np.zeros((9, 8, 8, 3), dtype=np.float32)
    alternating[1::2] = 0.25
    assert flicker(alternating) == pytest.approx(0.5)


def test_frechet_distance_of_two_gaussians_that_are_known():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200_000, 3))
    b = 2.0 * rng.standard_normal((200_000, 3)) + np.array([1.0, 0.0, 0.0])
    assert frechet_distance(a, b) == pytest.approx(1.0 + 3 * (2.0 - 1.0) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: psnr_db(v[0], v[0, :4]), "one shape"),
        (lambda v: ssim(v[0, 0], v[0, 0]), "must be"),
        (lambda v: flicker(v[0, :2]), "at least 3 frames"),
        (lambda v: frechet_distance(np.zeros((1, 3)), np.zeros((4, 3))), "at least 2"),
        (lambda v: frechet_distance(np.zeros((4, 3)), np.zeros((4, 2))), r"\[N, D\]"),
    ],
)
def test_bad_input_is_named(videos, call, message):
    with pytest.raises(ValueError, match=message):
        call(videos)
