"""The observed verdict on a cell, from what was seen of it and from the quality budget."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from .intervals import Estimate

MAX_ALIGNMENT_REACH = 0.04
"""Alignment says nothing while its interval reaches further than four points: one wrong attribute of ten is no loss."""


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


QUALITY_VERDICTS = frozenset({Observed.PASS, Observed.DEGRADED, Observed.UNDECIDED})
"""Verdicts on a cell that does what it says: they are about the quality budget, which no declaration speaks of."""


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
    "composes": QUALITY_VERDICTS,
    "composes_with_reset": QUALITY_VERDICTS,
    "inert": frozenset({Observed.INERT}),
    # Where it is run to audit the declaration, a loss or an adapter without effect says that the refusal is right.
    "refused": frozenset(Observed) - {Observed.PASS, Observed.SKIPPED},
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
        alignment_kept: prompt alignment over large-only's; ``num_attributes`` that it is of.
        speedup: over large-only.
        num_prompts: shown so far; ``has_more`` whether more could be, ``is_screening`` whether means decide.
    """

    is_large_alone: bool
    is_finite: bool
    is_warm_equal: bool
    is_teardown_clean: bool
    is_identical_to_large: bool
    is_identical_to_blend: bool | None
    num_other_forwards: int
    psnr_db: Estimate | None
    ssim: Estimate | None
    alignment_kept: Estimate | None = None
    num_attributes: int = 0
    speedup: Estimate | None = None
    num_prompts: int = 0
    has_more: bool = False
    is_screening: bool = False


def observe(seen: Observation, budget: QualityBudget) -> tuple[Observed, list[str]]:
    """The verdict on a cell that ran, and every reason for it (never none).

    Of quality a cell passes where every interval lies on the good side of its bound, is degraded where one lies on the
    bad side, and is undecided otherwise. Alignment is on the good side as long as its mean is: to be sure of it
    every cell would need all prompts.
    """
    criteria = list(_criteria(seen, budget))
    for verdict, reasons in (
        (Observed.BROKEN, list(_broken(seen))),
        (Observed.INERT, list(_inert(seen))),
        (Observed.DEGRADED, [f"{one}, under the budget." for one in criteria if one.is_below]),
        (
            Observed.UNDECIDED,
            [f"{one}: not certain after {seen.num_prompts} prompts." for one in criteria if one.is_open],
        ),
    ):
        if reasons:
            return verdict, reasons
    if seen.is_identical_to_large:
        return Observed.PASS, ["Equals large-only bit for bit."]
    return Observed.PASS, [f"Within the budget: {'; '.join(map(str, criteria))}."]


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


@dataclass(frozen=True)
class _Criterion:
    """One figure beside the bound that the budget sets."""

    name: str
    estimate: Estimate
    bound: float
    form: str
    is_kept_if_mean_is: bool = False

    @property
    def is_below(self) -> bool:
        return self.estimate.high < self.bound

    @property
    def is_open(self) -> bool:
        least = self.estimate.value if self.is_kept_if_mean_is else self.estimate.low
        return least < self.bound and not self.is_below

    def __str__(self) -> str:
        value, low, high, bound = (format(one, self.form) for one in (*self.estimate, self.bound))
        between = f" ({low} to {high})" if low != high else ""
        return f"{self.name} {value}{between}, at least {bound} asked for"


def _criteria(seen: Observation, budget: QualityBudget) -> Iterator[_Criterion]:
    for name, estimate, bound, form in (
        ("PSNR in dB", seen.psnr_db, budget.min_psnr_db, ".2f"),
        ("SSIM", seen.ssim, budget.min_ssim, ".3f"),
    ):
        if estimate is not None:
            yield _Criterion(name, estimate.without_interval() if seen.is_screening else estimate, bound, form)
    kept = seen.alignment_kept
    if kept is not None and (
        kept.reach <= MAX_ALIGNMENT_REACH or seen.has_more or kept.high < budget.min_alignment_kept
    ):
        name = f"prompt alignment of large-only's, on {seen.num_attributes} attributes,"
        yield _Criterion(name, kept, budget.min_alignment_kept, ".1%", is_kept_if_mean_is=True)
    if seen.speedup is not None and budget.min_speedup > 0.0:
        yield _Criterion("speed-up over large-only", seen.speedup, budget.min_speedup, ".2f")
