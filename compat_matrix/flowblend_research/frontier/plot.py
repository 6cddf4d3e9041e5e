"""``frontier.png``: speed against PSNR, alignment and Frechet distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flowblend_plugins.types import JsonObject

from .race import Point
from .techniques import COMPUTED, is_single

PANELS = (("psnr_db", "PSNR to large-only, dB"), ("alignment", "captions right"), ("frechet", "Frechet distance"))
HIGHEST_DB = 60


def draw(measured: Mapping[str, Sequence[Point]], path: Path) -> None:
    """A panel for each quantity; single techniques as lines, with blending dotted; computed stacks black."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, all_axes = pyplot.subplots(1, len(PANELS), figsize=(19, 6.5), constrained_layout=True)
    colours = pyplot.get_cmap("tab20")
    for axes, (quantity, label) in zip(all_axes, PANELS, strict=True):
        for number, (name, points) in enumerate(measured.items()):
            style: JsonObject = {"marker": "o", "ms": 4, "lw": 0.9, "color": colours(number % 20)}
            if name == COMPUTED:
                style = {"marker": "s", "ms": 5, "lw": 0, "color": "black", "zorder": 9}
            elif not is_single(name):
                style |= {"ls": ":", "marker": "^"}
            line = sorted(points, key=lambda one: one.speedup)
            axes.plot([one.speedup for one in line], [getattr(one, quantity) for one in line], label=name, **style)
        axes.set_xscale("log")
        axes.set_xlabel("times as fast as the large denoiser alone")
        axes.set_ylabel(label)
        for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatter(ticker.StrMethodFormatter("{x:g}×"))
        axes.tick_params(axis="x", which="both", labelsize=8)
        axes.grid(alpha=0.3, which="both")
    all_axes[0].set_ylim(top=HIGHEST_DB)
    all_axes[0].legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
