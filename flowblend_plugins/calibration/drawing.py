"""A divergence curve as a picture."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..extras import how_to_install, is_installed
from .curve import DivergenceCurve, boundaries_of_divergence, half_height

_ENDINGS = (".png", ".svg")


def check_drawable(path: Path) -> None:
    """Raise ``UsageError`` where a picture cannot be drawn, before anything is measured."""
    if path.suffix not in _ENDINGS:
        raise UsageError(f"--plot {path}: a picture's name must end in {' or '.join(_ENDINGS)}.")
    if not is_installed("matplotlib"):
        raise UsageError(f"--plot needs matplotlib, which is not installed. {how_to_install('matplotlib')}")


def draw(curve: DivergenceCurve, path: Path) -> None:
    """Relative l2 distance and cosine over the steps, a line for each branch, shaded by one standard deviation.

    The level of half the height is dashed, and the boundaries that are read off it are dotted.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    matplotlib.rcParams["svg.hashsalt"] = "flowblend"  # the same curve is the same file
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    steps = range(1, len(curve.sigmas) + 1)
    decides = curve.deciding_branch
    for axis, quantity, title in zip(
        figure.subplots(1, 2), ("relative_l2", "cosine"), ("relative l2 distance", "cosine similarity"), strict=True
    ):
        for name, branch in curve.branches.items():
            values = getattr(branch, quantity)
            line = axis.plot(steps, [one.mean for one in values], label=name, linewidth=2.2 if name == decides else 1.2)
            low, high = ([one.mean + side * one.deviation for one in values] for side in (-1, 1))
            axis.fill_between(steps, low, high, alpha=0.12, color=line[0].get_color(), linewidth=0)
        axis.set_title(f"{title} of the two velocities", fontsize=10)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylim(bottom=0.0)
        axis.legend(fontsize=8)
        if quantity == "relative_l2":
            means = [one.mean for one in curve.branches[decides].relative_l2]
            axis.axhline(half_height(means).level, color="grey", linestyle="--", linewidth=0.8)
            early, late = boundaries_of_divergence(means)
            for edge in (early, len(means) - late):
                if 0 < edge < len(means):
                    axis.axvline(edge + 0.5, color="grey", linestyle=":", linewidth=0.8)
    figure.savefig(path, dpi=110)
