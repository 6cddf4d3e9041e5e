"""The one sentence that says what a pair's cells found, with its intervals and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..results.matrix_results import CellResult, PairRecord
from .figures import figure, percent, times

_MANY = 5
"""Cells that are named in a sentence."""


class Headline(NamedTuple):
    """The sentence, what stands behind it, and the cell that it is about."""

    text: str
    detail: str
    best: CellResult | None


def headline(pair: PairRecord, cells: Sequence[CellResult]) -> Headline:
    """The fastest cell within the quality budget, as confirmed where it was; failing that, what stood in the way."""
    changed = [c for c in cells if c.speedup_over_large is not None and not c.is_identical_to_large]
    passing = [c for c in changed if c.observed == "pass" and _speedup(c) > 1.0]
    degraded = [c for c in changed if c.observed in ("degraded", "undecided")]
    confirmed = None if pair.headline is None else next((c for c in cells if c.id == pair.headline.cell), None)
    best: CellResult | None = None
    if confirmed is not None:
        best = confirmed
        text = f"{best.id} is {told(best, pair)}, confirmed on prompts and seeds that chose nothing"
        detail = f"{percent(best.flops_fraction_full)} of the FLOPs."
    elif pair.headline is not None:
        text = "No cell was confirmed to be both faster than the large denoiser alone and within the quality budget"
        detail = "What passed at first did not hold on other prompts and seeds."
    elif passing:
        best = max(passing, key=_speedup)
        text = f"{best.id} is {told(best, pair)}, within the quality budget; not confirmed on other prompts"
        detail = f"{percent(best.flops_fraction_full)} of the FLOPs."
        if best.is_screened:
            detail += " This was a screening: few prompts, so no verdict is certain."
    elif degraded:
        best = max(degraded, key=lambda c: c.psnr_db if c.psnr_db is not None else 0.0)
        text = "No cell here is both faster than the large denoiser alone and within the quality budget"
        detail = f"The closest is {best.id}: {told(best, pair)}."
    else:
        text = "Nothing here could be compared with the large denoiser alone"
        detail = "No cell ran that changes its output."
    if pair.headline is not None and pair.headline.dropped:
        detail += f" Faster, but not confirmed: {_named(pair.headline.dropped)}."
    if broken := [c.id for c in cells if c.observed == "broken"]:
        detail += f" Broken: {_named(broken)}."
    return Headline(f"{text}.", detail, best)


def told(cell: CellResult, pair: PairRecord) -> str:
    """Speed, PSNR and prompts of a cell in words, each with its interval: of its confirmation where it has one."""
    of = cell.confirmation or cell
    prompts = of.num_prompts or len(pair.prompts)
    said = f"{times(of.speedup_over_large)}{_interval(of.speedup_over_large_interval, 2)} as fast as the large denoiser"
    if cell.is_identical_to_large:
        return f"{said} alone, with the same output"
    if of.psnr_db is None:
        return f"{said} alone, fidelity not measured"
    psnr = f"{figure(of.psnr_db, 1)} dB PSNR{_interval(of.psnr_db_interval, 1)}"
    return f"{said} alone, at {psnr} over {prompts} {'prompt' if prompts == 1 else 'prompts'}"


def _interval(bounds: Sequence[float] | None, digits: int) -> str:
    return "" if bounds is None else f" ({bounds[0]:.{digits}f}–{bounds[1]:.{digits}f})"


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MANY} more" if len(ids) > _MANY else ""
    return f"{', '.join(ids[:_MANY])}{more}"


def _speedup(cell: CellResult) -> float:
    return cell.speedup_over_large or 0.0
