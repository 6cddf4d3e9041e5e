"""Distances between two videos, and the quality of a set of them; videos are float32 in 0..1.

Every function takes one video ``[F, H, W, 3]`` or a batch ``[N, F, H, W, 3]`` and gives one number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Videos = NDArray[np.float32]


def _check(videos: Videos, name: str) -> Videos:
    if videos.ndim not in (4, 5) or videos.shape[-1] != 3:
        raise ValueError(f"{name} must be [F, H, W, 3] or [N, F, H, W, 3]; found shape {videos.shape}")
    return videos


def _check_pair(a: Videos, b: Videos) -> None:
    if _check(a, "the first video").shape != _check(b, "the second video").shape:
        raise ValueError(f"the videos must have one shape; found {a.shape} and {b.shape}")


def psnr_db(a: Videos, b: Videos) -> float:
    """Peak signal-to-noise ratio over all pixels of all frames, in decibels; infinite for equal videos.

    Of a batch, this is the mean of the videos' own values (infinite if any is).
    """
    from skimage.metrics import peak_signal_noise_ratio

    _check_pair(a, b)
    if a.ndim == 5:
        return float(np.mean([psnr_db(one, other) for one, other in zip(a, b, strict=True)]))
    if np.array_equal(a, b):
        return float("inf")
    return float(peak_signal_noise_ratio(a.astype(np.float64), b.astype(np.float64), data_range=1.0))


def ssim(a: Videos, b: Videos) -> float:
    """Structural similarity (Wang et al. 2004, their Gaussian windows), the mean over frames; 1 for equal videos."""
    from skimage.metrics import structural_similarity

    _check_pair(a, b)
    frames_a, frames_b = (videos.reshape(-1, *videos.shape[-3:]).astype(np.float64) for videos in (a, b))
    values = [
        structural_similarity(
            one,
            other,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for one, other in zip(frames_a, frames_b, strict=True)
    ]
    return float(np.mean(np.asarray(values)))


def _detail(videos: Videos) -> NDArray[np.float64]:
    """Local strength of detail: what a blur of one pixel removes, its magnitude averaged over about two pixels."""
    from scipy.ndimage import gaussian_filter

    spatial = (-3, -2)
    values = videos.astype(np.float64)
    removed = np.abs(values - gaussian_filter(values, sigma=1.0, axes=spatial))
    return np.asarray(gaussian_filter(removed, sigma=2.0, axes=spatial))


def high_frequency_error(a: Videos, reference: Videos) -> float:
    """Difference in the strength of fine detail, place by place; relative to the reference, 0 for equal videos.

    It compares strength, not pixels: a texture that has moved by a pixel counts for little, one that is smeared away
    or an artefact that was not there counts in full.
    """
    _check_pair(a, reference)
    detail, wanted = _detail(a), _detail(reference)
    return float(np.abs(detail - wanted).mean() / max(wanted.mean(), 1e-12))


def flicker(a: Videos) -> float:
    """Mean magnitude of the second difference in time, in units of full brightness; 0 for steady change.

    Moving edges have some too, so compare it with that of another video of the same content.
    """
    _check(a, "the video")
    if a.shape[-4] < 3:
        raise ValueError(f"flicker needs at least 3 frames; found {a.shape[-4]}")
    return float(np.abs(np.diff(a.astype(np.float64), n=2, axis=-4)).mean())


def frechet_distance(features_a: NDArray[np.float64], features_b: NDArray[np.float64]) -> float:
    """Frechet distance of two Gaussians fitted to features ``[N, D]`` (Dowson and Landau 1982; FID, FVD).

    Use several times ``D`` videos: with few, the distance is biased upwards.
    """
    from scipy.linalg import eigvals

    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D]; found {features_a.shape} and {features_b.shape}")
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError("a Frechet distance needs at least 2 videos on either side")
    shift = features_a.mean(axis=0) - features_b.mean(axis=0)
    covariance_a, covariance_b = np.cov(features_a, rowvar=False), np.cov(features_b, rowvar=False)
    covariance_a, covariance_b = np.atleast_2d(covariance_a), np.atleast_2d(covariance_b)
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are real and not negative.
    roots = np.sqrt(np.clip(np.real(eigvals(covariance_a @ covariance_b)), 0.0, None))
    distance = shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2.0 * roots.sum()
    return float(max(distance, 0.0))
