"""The one sentence that says what a pair's cells found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..results.matrix_results import CellResult
from .figures import figure, percent, times

_MANY = 5
"""Cells that are named in a sentence."""


class Headline(NamedTuple):
    """The sentence, and what stands behind it."""

    text: str
    detail: str


def headline(cells: Sequence[CellResult]) -> Headline:
    """The fastest cell within the quality budget; failing that, what stood in the way."""
    changed = [c for c in cells if c.speedup_over_large is not None and not c.is_identical_to_large]
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
    broken = [c.id for c in cells if c.observed == "broken"]
    if broken:
        more = f" and {len(broken) - _MANY} more" if len(broken) > _MANY else ""
        detail += f" Broken: {', '.join(broken[:_MANY])}{more}."
    return Headline(f"{text}.", detail)


def _speedup(cell: CellResult) -> float:
    return cell.speedup_over_large or 0.0


def _fidelity(cell: CellResult) -> str:
    if cell.psnr_db is None:
        return "fidelity not measured"
    return f"{figure(cell.psnr_db, 1)} dB PSNR to it at the same seed"
