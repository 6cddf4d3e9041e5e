"""Whole matrices from made-up prompts: true means are known, so every verdict and headline can be checked.

The true means and spreads are those that a measured matrix has. Prompts are drawn anew in every run, a part of their
effect common to all cells; the verdicts are those of the package, by the functions that a real run calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flowblend_compat_matrix.measuring.fidelity import Fidelity
from flowblend_compat_matrix.results.cell_result import CellResult, Confirmation
from flowblend_compat_matrix.results.intervals import LOOKS, NUM_PILOT_PROMPTS, USUAL_SPREADS, Spread
from flowblend_compat_matrix.results.matrix_results import PairRecord
from flowblend_compat_matrix.results.verdicts import QUALITY_VERDICTS, Observation, Observed, QualityBudget, observe
from flowblend_compat_matrix.running.confirming import NUM_PROMPTS, candidates, conclude

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]
SHAPES: Mapping[str, Draw] = {
    "normal": lambda random, size: random.standard_normal(size),
    "heavy tails (t, 4 degrees)": lambda random, size: random.standard_t(4, size) / 2.0**0.5,
    "skewed to good": lambda random, size: (random.gamma(2.0, size=size) - 2.0) / 2.0**0.5,
    "skewed to bad": lambda random, size: (2.0 - random.gamma(2.0, size=size)) / 2.0**0.5,
}
"""Effects of a prompt, of mean 0 and variance 1."""

_COMMON, _SSIM_WITH_PSNR = 0.5, 0.8
"""Share of a prompt's variance that all cells have in common, and the correlation of SSIM and PSNR within a cell."""
_SPEED_NOISE = 0.04
_RAN = Observation(
    is_large_alone=False, is_finite=True, is_warm_equal=True, is_teardown_clean=True, is_identical_to_large=False,
    is_identical_to_blend=None, num_other_forwards=1, psnr_db=None, ssim=None,
)  # fmt: skip


@dataclass(frozen=True)
class TrueCell:
    """A cell as it would be on all prompts there are."""

    id: str
    psnr_db: float
    psnr_std: float
    ssim: float
    ssim_std: float
    speedup: float

    def is_within(self, budget: QualityBudget) -> bool:
        return self.psnr_db >= budget.min_psnr_db and self.ssim >= budget.min_ssim


@dataclass
class Tally:
    """Counts over all simulated runs of one pair."""

    num_runs: int = 0
    num_cells: int = 0
    num_undecided: int = 0
    num_wrong: int = 0
    num_prompts: int = 0
    num_at_first_look: int = 0
    num_false_headlines: int = 0
    num_false_without_confirmation: int = 0
    num_without_headline: int = 0


def true_cells(cells: Sequence[CellResult]) -> list[TrueCell]:
    """The measured cells as if their means and spreads were true; those of three prompts spread too little by 1.4."""
    found: list[TrueCell] = []
    for cell in cells:
        if cell.observed not in {one.value for one in QUALITY_VERDICTS} or cell.psnr_db is None or cell.ssim is None:
            continue
        more = 1.4 if cell.num_prompts <= LOOKS[0] else 1.0
        stds = (more * (cell.psnr_db_std or 0.0), more * (cell.ssim_std or 0.0))
        found.append(TrueCell(cell.id, cell.psnr_db, stds[0], cell.ssim, stds[1], cell.speedup_over_large or 1.0))
    return found


def simulate(cells: Sequence[TrueCell], num_runs: int, draw: Draw, seed: int, budget: QualityBudget) -> Tally:
    """Run the matrix of one pair so often, each time on other prompts.

    Args:
        cells: of the pair.
        num_runs: matrices.
        draw: effects of prompts, see :data:`SHAPES`.
        seed: of everything that is drawn.
        budget: by which cells are judged.
    """
    random, tally = np.random.default_rng(seed), Tally()
    pilot = next((cell for cell in cells if cell.id == "LSL"), cells[0])
    for _ in range(num_runs):
        psnr, ssim = _prompts(cells, LOOKS[-1], draw, random)
        first = cells.index(pilot)
        seen = Fidelity({}, None)
        seen.values = {"psnr_db": list(psnr[first, :NUM_PILOT_PROMPTS]), "ssim": list(ssim[first, :NUM_PILOT_PROMPTS])}
        usual, results = seen.spreads(), []
        for number, cell in enumerate(cells):
            result = _measure(cell, psnr[number], ssim[number], LOOKS, usual, budget)
            result.speedup_over_large = cell.speedup * float(np.exp(_SPEED_NOISE * random.standard_normal()))
            results.append(result)
        _count(tally, cells, results, budget)
        _confirm(tally, cells, results, draw, random, budget)
    return tally


def _prompts(
    cells: Sequence[TrueCell], number: int, draw: Draw, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """PSNR and SSIM of every cell (first axis) on so many prompts."""
    size = (len(cells), number)

    def mixed() -> NDArray[np.float64]:
        return _COMMON**0.5 * draw(random, (1, number)) + (1.0 - _COMMON) ** 0.5 * draw(random, size)

    one, other = mixed(), mixed()
    both = _SSIM_WITH_PSNR * one + (1.0 - _SSIM_WITH_PSNR**2) ** 0.5 * other
    means = [
        np.array([getattr(cell, name) for cell in cells])[:, None]
        for name in ("psnr_db", "psnr_std", "ssim", "ssim_std")
    ]
    return means[0] + means[1] * one, means[2] + means[3] * both


def _measure(
    cell: TrueCell,
    psnr: NDArray[np.float64],
    ssim: NDArray[np.float64],
    looks: Sequence[int],
    usual: Mapping[str, Spread],
    budget: QualityBudget,
) -> CellResult:
    """Look until the cell is certain, or all prompts were shown."""
    result = CellResult(id=cell.id, pair="", schedule="", adapters=[])
    for look in looks:
        fidelity = Fidelity(
            {}, None, usual, {"psnr_db": list(psnr[:look]), "ssim": list(ssim[:look])}, num_prompts=look
        )
        known = {name: fidelity.estimate(name, looks) for name in ("psnr_db", "ssim")}
        verdict, _ = observe(replace(_RAN, **known, has_more=look < looks[-1]), budget)
        result.observed, result.num_prompts, result.psnr_db = verdict.value, look, float(psnr[:look].mean())
        if verdict is not Observed.UNDECIDED:
            break
    return result


def _count(tally: Tally, cells: Sequence[TrueCell], results: Sequence[CellResult], budget: QualityBudget) -> None:
    tally.num_runs += 1
    for cell, result in zip(cells, results, strict=True):
        tally.num_cells += 1
        tally.num_prompts += result.num_prompts
        tally.num_at_first_look += result.num_prompts == LOOKS[0]
        if result.observed == Observed.UNDECIDED.value:
            tally.num_undecided += 1
        else:
            tally.num_wrong += (result.observed == Observed.PASS.value) != cell.is_within(budget)


def _confirm(
    tally: Tally,
    cells: Sequence[TrueCell],
    results: Sequence[CellResult],
    draw: Draw,
    random: np.random.Generator,
    budget: QualityBudget,
) -> None:
    """Show the candidates for the headline other prompts, the fastest first, until one holds."""
    by_id, tried = {cell.id: cell for cell in cells}, candidates(results)
    if tried:
        tally.num_false_without_confirmation += not by_id[tried[0].id].is_within(budget)
        truths = [by_id[result.id] for result in tried]
        for truth, result, psnr, ssim in zip(truths, tried, *_prompts(truths, NUM_PROMPTS, draw, random), strict=True):
            again = _measure(truth, psnr, ssim, (NUM_PROMPTS,), USUAL_SPREADS, budget)
            result.confirmation = Confirmation(num_prompts=NUM_PROMPTS, is_within_budget=again.observed == "pass")
            if result.confirmation.is_within_budget:
                break
    pair = PairRecord(
        name="", pipeline="", makes="videos", prompts=[], seeds=[], call={}, early=0.4, late=0.2
    )  # fmt: skip
    conclude(pair, results)
    assert pair.headline is not None
    if pair.headline.cell is None:
        tally.num_without_headline += 1
    else:
        tally.num_false_headlines += not by_id[pair.headline.cell].is_within(budget)
