"""Draw how the amplitudes of a pair's latents lie against the noise levels: does every step have something to decide?

``python -m flowblend_research.training.ltx.spectrum --out DIR`` (the folder of the training; needs its codec)

A component of the latents is decided along a trajectory about where the noise falls under its amplitude. The figure
shows the eigenvalues of the latents' covariance, and what they mean for a sampler: the relative change of the velocity
from one noise level to the next, if the latents were Gaussian with that covariance and the denoiser ideal. Beside the
first pair's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from flowblend_compat_matrix.reference.ltx.world import LTX_WORLD
from flowblend_compat_matrix.reference.pair import held_out_videos, load_pair
from flowblend_compat_matrix.reference.world import WORLD, World

from ..wan.codec import encode_mean as encode_wan
from ..wan.codec import normalise as normalise_wan
from .codec import encode_mean
from .export import load_codec

NUM_VIDEOS = 600
NUM_STEPS = 20
FIGURE = Path("docs/images/ltx_spectrum.png")


def eigenvalues(columns: torch.Tensor) -> NDArray[np.float64]:
    """Eigenvalues of the covariance of ``[N, D]``, the largest first."""
    flat = columns.double() - columns.double().mean(dim=0)
    return torch.linalg.eigvalsh(flat.T @ flat / (len(flat) - 1)).flip(0).clamp(min=1e-9).numpy()


def velocity_changes(spectrum: NDArray[np.float64], num_steps: int = NUM_STEPS) -> NDArray[np.float64]:
    """Relative change of the ideal velocity of a Gaussian from each of ``num_steps`` uniform noise levels to the next.

    Along the flow from noise a component of variance ``v`` is ``sqrt((1 - s) ** 2 v + s ** 2)`` times its first value.
    """
    levels = np.linspace(1.0, 1.0 / num_steps, num_steps)[:, None]
    variance = spectrum[None]
    amplitude = np.sqrt((1.0 - levels) ** 2 * variance + levels**2)
    velocity = (levels - (1.0 - levels) * variance) / amplitude
    change = np.linalg.norm(np.diff(velocity, axis=0), axis=1)
    return change / np.linalg.norm(velocity[:-1], axis=1)


def decided(spectrum: NDArray[np.float64], num_steps: int = NUM_STEPS) -> NDArray[np.float64]:
    """Share of the components under whose amplitude the noise falls within each of ``num_steps`` equal steps."""
    amplitude = np.sqrt(spectrum)
    where = amplitude / (1.0 + amplitude)  # the level s at which s = (1 - s) * amplitude
    counts, _ = np.histogram(where, bins=np.linspace(0.0, 1.0, num_steps + 1))
    return counts[::-1] / len(spectrum)


def spectra(out: Path, num_videos: int) -> dict[str, NDArray[np.float64]]:
    """Spectra of the first pair's latents and of the LTX pair's, over held-out videos.

    They are of what lies at one of 4x4 places of the picture in all latent frames: as many numbers as some hundred
    videos determine well.
    """
    wan, ltx = load_pair().pipeline.vae, load_codec(out)

    def encoded(world: World, encode: object) -> torch.Tensor:
        parts = []
        for start in range(0, num_videos, 100):
            videos = torch.from_numpy(held_out_videos(100, seed=50_000 + start, world=world)).permute(0, 4, 1, 2, 3)
            parts.append(encode(videos * 2.0 - 1.0))  # type: ignore[operator]
        return torch.cat(parts)

    first = normalise_wan(wan, encoded(WORLD, lambda videos: encode_wan(wan, videos)))
    second = encoded(LTX_WORLD, lambda videos: encode_mean(ltx, videos))
    wide = first.reshape(len(first), 12, 3, 4, 2, 4, 2).permute(0, 3, 5, 1, 2, 4, 6).reshape(-1, 144)
    centred = second - second.mean(dim=(0, 2, 3, 4), keepdim=True)
    columns = (centred / centred.std()).permute(0, 3, 4, 1, 2).reshape(-1, 192)
    return {
        "first pair (WAN)": eigenvalues(wide),
        "LTX pair": eigenvalues(columns),
    }


def draw(found: dict[str, NDArray[np.float64]], target: Path) -> None:
    """Draw the three curves of every spectrum into an image file."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    for name, spectrum in found.items():
        axes[0].loglog(np.arange(1, len(spectrum) + 1) / len(spectrum), np.sqrt(spectrum), label=name)
        axes[1].plot(100 * decided(spectrum), label=name)
        axes[2].plot(100 * velocity_changes(spectrum), label=name)
    axes[0].set(xlabel="share of components", ylabel="amplitude (noise: 1)", title="Amplitudes of the latents")
    axes[1].set(xlabel=f"step of {NUM_STEPS}, noise first", ylabel="% of components", title="Decided in this step")
    axes[2].set(xlabel=f"step of {NUM_STEPS}, noise first", ylabel="% of the velocity", title="Change, Gaussian ideal")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(target, dpi=90)


def main() -> None:
    """Measure, draw, and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--videos", type=int, default=NUM_VIDEOS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = spectra(given.out, given.videos)
    draw(found, given.figure)
    for name, spectrum in found.items():
        at = [int(len(spectrum) * share) for share in (0.01, 0.1, 0.5, 0.9)]
        print(f"{name}: amplitudes at 1, 10, 50 and 90 % of the components {np.sqrt(spectrum[at]).round(3)}")
        print("  decided, % a step:", (100 * decided(spectrum)).round(1).tolist())
        print("  change, % a step:", (100 * velocity_changes(spectrum)).round(1).tolist())


if __name__ == "__main__":
    main()
