"""The one sentence that says what a matrix found."""

from __future__ import annotations

from typing import NamedTuple

from ..results import CellResult, Matrix
from .figures import figure, percent, times


class Headline(NamedTuple):
    """The sentence, and what stands behind it."""

    text: str
    detail: str


def headline(matrix: Matrix) -> Headline:
    """The fastest cell within the quality budget; failing that, what stood in the way."""
    changed = [c for c in matrix.cells if c.speedup_over_large is not None and not c.is_identical_to_large]
    passing = [c for c in changed if c.observed == "pass" and _speedup(c) > 1.0]
    degraded = [c for c in changed if c.observed == "degraded"]
    if passing:
        best = max(passing, key=_speedup)
        speed = f"{times(best.speedup_over_large)} as fast as the large denoiser alone"
        text = f"{best.id} is {speed}, within the quality budget"
        detail = f"{_fidelity(best)}, {percent(best.flops_fraction_full)} of the FLOPs."
    elif degraded:
        best = max(degraded, key=lambda c: c.psnr_db if c.psnr_db is not None else 0.0)
        text = "No cell here is both faster than the large denoiser alone and within the quality budget"
        detail = f"The closest is {best.id}: {_fidelity(best)} at {times(best.speedup_over_large)}."
    else:
        text = "Nothing here could be compared with the large denoiser alone"
        detail = "No cell ran that changes its output."
    broken = [c.id for c in matrix.cells if c.observed == "broken"]
    if broken:
        detail += f" Broken: {', '.join(broken)}."
    return Headline(f"{text}.", detail)


def _speedup(cell: CellResult) -> float:
    return cell.speedup_over_large or 0.0


def _fidelity(cell: CellResult) -> str:
    if cell.psnr_db is None:
        return "fidelity not measured"
    return f"{figure(cell.psnr_db, 1)} dB PSNR to its video of the same seed"
