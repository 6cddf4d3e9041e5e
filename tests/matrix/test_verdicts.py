"""The observed verdict follows from what was seen, the worst finding first, and always says why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flowblend_compat_matrix.results.intervals import Estimate
from flowblend_compat_matrix.results.verdicts import Observation, Observed, QualityBudget, observe


def about(value: float, reach: float) -> Estimate:
    return Estimate(value, value - reach, value + reach)


BUDGET = QualityBudget(min_psnr_db=20.0, min_ssim=0.75, min_alignment_kept=0.96)
GOOD = Observation(
    is_large_alone=False,
    is_finite=True,
    is_warm_equal=True,
    is_teardown_clean=True,
    is_identical_to_large=False,
    is_identical_to_blend=None,
    num_other_forwards=40,
    psnr_db=about(22.0, 1.0),
    ssim=about(0.8, 0.02),
    alignment_kept=about(0.978, 0.03),
    num_attributes=200,
    num_prompts=64,
)
LARGE_ALONE: dict[str, Any] = {
    "is_large_alone": True,
    "is_identical_to_large": True,
    "num_other_forwards": 0,
    "psnr_db": None,
    "ssim": None,
    "alignment_kept": None,
}


@pytest.mark.parametrize(
    ("changes", "verdict", "said"),
    [
        ({}, Observed.PASS, ["22.00 (21.00 to 23.00)", "0.800", "97.8%", "200 attributes"]),
        (LARGE_ALONE, Observed.PASS, ["bit for bit"]),
        # An interval that begins at the budget is within it; one that holds it is not certain.
        ({"psnr_db": about(21.0, 1.0), "ssim": about(0.77, 0.02)}, Observed.PASS, ["21.00"]),
        ({"psnr_db": about(20.9, 1.0)}, Observed.UNDECIDED, ["PSNR", "19.90 to 21.90", "64 prompts"]),
        ({"psnr_db": about(19.1, 1.0)}, Observed.UNDECIDED, ["PSNR"]),
        ({"psnr_db": about(18.9, 1.0)}, Observed.DEGRADED, ["PSNR", "20.00"]),
        ({"ssim": about(0.7, 0.04)}, Observed.DEGRADED, ["SSIM", "0.750"]),
        # One certain loss decides, whatever else is open.
        ({"psnr_db": about(20.0, 1.0), "ssim": about(0.7, 0.04)}, Observed.DEGRADED, ["SSIM"]),
        ({"alignment_kept": about(0.9, 0.03)}, Observed.DEGRADED, ["alignment", "90.0%"]),
        ({"alignment_kept": about(0.95, 0.03)}, Observed.UNDECIDED, ["alignment", "95.0%"]),
        # One wrong attribute of ten calls for more prompts; where there are none it says nothing.
        ({"alignment_kept": about(0.9, 0.2), "has_more": True}, Observed.UNDECIDED, ["alignment"]),
        ({"alignment_kept": about(0.9, 0.2)}, Observed.PASS, ["22.00"]),
        # Of a screening the means decide, but for alignment.
        ({"psnr_db": about(20.1, 9.0), "ssim": about(0.76, 0.5), "is_screening": True}, Observed.PASS, ["20.10"]),
        ({"psnr_db": about(19.9, 9.0), "is_screening": True}, Observed.DEGRADED, ["19.90"]),
        # Without a judge, and of metrics that are not there, nothing is held against the cell.
        ({"alignment_kept": None}, Observed.PASS, ["22.00"]),
        ({"is_identical_to_blend": True}, Observed.INERT, ["without them"]),
        ({"num_other_forwards": 0}, Observed.INERT, ["large denoiser"]),
        ({"is_identical_to_large": True, "psnr_db": None}, Observed.INERT, ["bit for bit"]),
        # A stack on large-only calls no other denoiser, and is not inert for that.
        ({"is_identical_to_blend": False, "num_other_forwards": 0}, Observed.PASS, ["22.00"]),
        ({"is_warm_equal": False}, Observed.BROKEN, ["leaks"]),
        ({"is_teardown_clean": False}, Observed.BROKEN, ["left behind"]),
        (LARGE_ALONE | {"is_identical_to_large": False}, Observed.BROKEN, ["under the router"]),
    ],
)
def test_verdict(changes: dict[str, Any], verdict: Observed, said: list[str]) -> None:
    found, reasons = observe(dataclasses.replace(GOOD, **changes), BUDGET)
    assert found is verdict
    assert all(any(text in reason for reason in reasons) for text in said), reasons


def test_all_that_is_below_the_budget_is_told_at_once() -> None:
    _, reasons = observe(
        dataclasses.replace(GOOD, psnr_db=about(5.0, 1.0), ssim=about(0.1, 0.1), alignment_kept=about(0.1, 0.1)), BUDGET
    )
    assert len(reasons) == 3


def test_broken_outweighs_inert_and_degraded() -> None:
    seen = dataclasses.replace(GOOD, is_warm_equal=False, is_identical_to_blend=True, psnr_db=about(1.0, 0.1))
    assert observe(seen, BUDGET)[0] is Observed.BROKEN


def test_an_output_that_is_no_number_is_broken_and_nothing_else_is_said_of_it() -> None:
    seen = dataclasses.replace(GOOD, is_finite=False, is_warm_equal=False, psnr_db=None)
    verdict, reasons = observe(seen, BUDGET)
    assert verdict is Observed.BROKEN
    assert reasons == ["The output holds NaN or infinity."]


def test_a_bound_on_speed_is_judged_by_its_interval() -> None:
    asked = dataclasses.replace(BUDGET, min_speedup=1.5)
    for speed, verdict in ((about(1.4, 0.05), Observed.DEGRADED), (about(1.55, 0.1), Observed.UNDECIDED)):
        assert observe(dataclasses.replace(GOOD, speedup=speed), asked)[0] is verdict
    assert observe(dataclasses.replace(GOOD, speedup=about(1.4, 0.05)), BUDGET)[0] is Observed.PASS
