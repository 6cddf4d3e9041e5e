"""Record of a search as JSON: the front, the choice, and the environment; and a plot of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.types import JsonObject

from .race import Configuration, Point

API_VERSION = 1


def point_to_dict(point: Point) -> JsonObject:
    """A point as JSON takes it; what is not known is ``null``."""
    numbers = {
        "speedup_over_large": point.speedup,
        "flops_fraction": point.flops_fraction,
        "psnr_db": point.psnr_db,
        "psnr_std_db": point.psnr_std_db,
        "alignment": point.alignment,
        "frechet": point.frechet,
    }
    return {
        "schedule": point.configuration.schedule,
        "adapters": list(point.configuration.adapters),
        **{name: round(value, 4) if math.isfinite(value) else None for name, value in numbers.items()},
        "speedup_range": [round(value, 4) for value in point.speedup_range],
    }


def read_configurations(path: Path) -> list[Configuration]:
    """The front of a file that ``flowblend tune`` wrote, the slowest first.

    Raises:
        FlowBlendError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["api_version"] != API_VERSION:
            raise ValueError(f"api_version {found['api_version']}")
        return [Configuration(one["schedule"], tuple(one["adapters"])) for one in found["front"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlowBlendError(f"{path} is no result of `flowblend tune`: {type(error).__name__}: {error}.") from error


def draw_front(front: Sequence[Point], chosen: Point | None, others: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Speed against PSNR: the front as a line, the choice ringed, other techniques as points of their own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(9, 6), constrained_layout=True)
    for name, points in others.items():
        axes.plot(*_coordinates(points), "o-", ms=4, lw=0.8, alpha=0.7, label=name)
    axes.plot(*_coordinates(front), "ks-", ms=5, lw=1.8, label="tuned")
    if chosen is not None:
        axes.plot([chosen.speedup], [chosen.psnr_db], "o", ms=14, mfc="none", mec="tab:red", mew=2, label="chosen")
    axes.set_xscale("log")
    axes.set_xlabel("times as fast as the large denoiser alone")
    axes.set_ylabel("PSNR to it, dB")
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}×"))
    axes.xaxis.set_minor_formatter(ticker.StrMethodFormatter("{x:g}×"))
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    line = sorted(points, key=lambda one: one.speedup)
    return [one.speedup for one in line], [one.psnr_db for one in line]
