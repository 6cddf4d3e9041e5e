"""The observed verdict on a cell, from what was seen of it and from the quality budget."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass


class Observed(str, enum.Enum):
    """Observed verdict on a cell.

    ``pass`` certainly within the budget; ``degraded`` certainly below it; ``undecided`` where all prompts together do
    not tell; ``inert`` changed nothing; ``refused`` on purpose, with a reason; ``broken`` raised, or left state behind;
    ``skipped`` for want of an optional dependency.
    """

    PASS = "pass"
    DEGRADED = "degraded"
    UNDECIDED = "undecided"
    INERT = "inert"
    REFUSED = "refused"
    BROKEN = "broken"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class QualityBudget:
    """Bounds on fidelity to large-only at the same seeds, and on speed, below which a cell is degraded.

    20 dB and .75 lie between the published WAN clips of FlowBlending, LSL at 21.7-23.9 dB and .82-.84 and the small
    model alone at 10-12 dB. .96 is the share of similarity that the paper lets a schedule keep.

    Attributes:
        min_psnr_db: PSNR to large-only.
        min_ssim: SSIM to large-only.
        min_alignment_kept: prompt alignment as a fraction of large-only's.
        min_speedup: speed-up over large-only. 0 by default, which holds nothing against a cell: times are of one
            machine, and on the embedded pairs overheads show that vanish beside a real model.
    """

    min_psnr_db: float = 20.0
    min_ssim: float = 0.75
    min_alignment_kept: float = 0.96
    min_speedup: float = 0.0


AGREEING = {
    "composes": {Observed.PASS, Observed.DEGRADED, Observed.UNDECIDED},
    "composes_with_reset": {Observed.PASS, Observed.DEGRADED, Observed.UNDECIDED},
    "inert": {Observed.INERT},
    # Where it is run to audit the declaration, a loss or an adapter without effect says that the refusal is right.
    "refused": {Observed.REFUSED, Observed.BROKEN, Observed.DEGRADED, Observed.INERT},
}
"""What may be observed where a verdict is declared. Quality is no part of a declaration."""


def agrees(declared: str | None, observed: str | None) -> bool:
    """Whether what was seen is what the traits said. A cell that was skipped showed nothing."""
    if observed == Observed.SKIPPED.value:
        return True
    return declared is not None and observed is not None and Observed(observed) in AGREEING[declared]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Facts about a cell that ran to its end. ``None`` is what could not be measured.

    Attributes:
        is_large_alone: the cell is large-only under the router, so it must change nothing.
        is_finite: neither latents nor videos hold NaN or infinity.
        is_warm_equal, is_teardown_clean, is_identical_to_large: as in ``results.CellResult``.
        is_identical_to_blend: with adapters, whether the same schedule without them gives the same latents.
        num_other_forwards: calls that another denoiser than the large one answered.
        psnr_db, ssim: to large-only; ``None`` where identical.
        alignment, large_alignment: prompt alignment of the cell and of large-only.
        speedup: over large-only.
    """

    is_large_alone: bool
    is_finite: bool
    is_warm_equal: bool
    is_teardown_clean: bool
    is_identical_to_large: bool
    is_identical_to_blend: bool | None
    num_other_forwards: int
    psnr_db: float | None
    ssim: float | None
    alignment: float | None = None
    large_alignment: float | None = None
    speedup: float | None = None


def observe(seen: Observation, budget: QualityBudget) -> tuple[Observed, list[str]]:
    """The verdict on a cell that ran, and every reason for it (never none)."""
    for verdict, reasons in (
        (Observed.BROKEN, list(_broken(seen))),
        (Observed.INERT, list(_inert(seen))),
        (Observed.DEGRADED, list(_degraded(seen, budget))),
    ):
        if reasons:
            return verdict, reasons
    return Observed.PASS, [_passed(seen, budget)]


def _broken(seen: Observation) -> Iterator[str]:
    if not seen.is_finite:
        yield "The output holds NaN or infinity."
        return
    if not seen.is_warm_equal:
        yield "A later generation differs from the first at the same seed: state leaks from one into the next."
    if not seen.is_teardown_clean:
        yield "Large-only after disable() is not what it was before: something was left behind."
    if seen.is_large_alone and not seen.is_identical_to_large:
        yield "The large denoiser alone under the router differs from the pipeline without it."


def _inert(seen: Observation) -> Iterator[str]:
    if seen.is_large_alone:
        return
    if seen.is_identical_to_blend:
        yield "The adapters changed nothing: the same schedule without them gives the same latents, bit for bit."
    elif seen.num_other_forwards == 0 and seen.is_identical_to_blend is None:
        yield "Every step was answered by the large denoiser: no step falls into the small one's stages."
    elif seen.is_identical_to_large:
        yield "The output equals large-only's, bit for bit."


def _degraded(seen: Observation, budget: QualityBudget) -> Iterator[str]:
    if seen.psnr_db is not None and seen.psnr_db < budget.min_psnr_db:
        yield f"PSNR to large-only is {seen.psnr_db:.1f} dB, under the budget of {budget.min_psnr_db:g} dB."
    if seen.ssim is not None and seen.ssim < budget.min_ssim:
        yield f"SSIM to large-only is {seen.ssim:.3f}, under the budget of {budget.min_ssim:g}."
    if seen.alignment is not None and seen.large_alignment:
        kept = seen.alignment / seen.large_alignment
        if kept < budget.min_alignment_kept:
            yield (
                f"Prompt alignment is {seen.alignment:.3f}, {kept:.1%} of large-only's {seen.large_alignment:.3f}, "
                f"under the budget of {budget.min_alignment_kept:.0%}."
            )
    if seen.speedup is not None and seen.speedup < budget.min_speedup:
        yield f"It is {seen.speedup:.2f} times as fast as large-only, under the budget of {budget.min_speedup:g}."


def _passed(seen: Observation, budget: QualityBudget) -> str:
    if seen.is_identical_to_large:
        return "Equals large-only bit for bit."
    figures = []
    if seen.psnr_db is not None:
        figures.append(f"PSNR {seen.psnr_db:.1f} dB (at least {budget.min_psnr_db:g})")
    if seen.ssim is not None:
        figures.append(f"SSIM {seen.ssim:.3f} (at least {budget.min_ssim:g})")
    if seen.alignment is not None and seen.large_alignment:
        kept = seen.alignment / seen.large_alignment
        figures.append(f"{kept:.1%} of large-only's prompt alignment (at least {budget.min_alignment_kept:.0%})")
    return f"Within the budget: {', '.join(figures)}."
