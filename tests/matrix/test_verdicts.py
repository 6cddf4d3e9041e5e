"""The observed verdict follows from what was seen, the worst finding first, and always says why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flowblend_compat_matrix.results.verdicts import Observation, Observed, QualityBudget, observe

BUDGET = QualityBudget(min_psnr_db=20.0, min_ssim=0.75, min_alignment_kept=0.96)
GOOD = Observation(
    is_large_alone=False,
    is_finite=True,
    is_warm_equal=True,
    is_teardown_clean=True,
    is_identical_to_large=False,
    is_identical_to_blend=None,
    num_other_forwards=40,
    psnr_db=22.0,
    ssim=0.8,
    alignment=0.9,
    large_alignment=0.92,
)
LARGE_ALONE: dict[str, Any] = {
    "is_large_alone": True,
    "is_identical_to_large": True,
    "num_other_forwards": 0,
    "psnr_db": None,
    "ssim": 1.0,
    "alignment": 0.92,
}


@pytest.mark.parametrize(
    ("changes", "verdict", "said"),
    [
        ({}, Observed.PASS, ["22.0 dB", "0.800", "97.8%"]),
        (LARGE_ALONE, Observed.PASS, ["bit for bit"]),
        # At the budget is within it; just under it is not.
        ({"psnr_db": 20.0, "ssim": 0.75, "alignment": 0.96, "large_alignment": 1.0}, Observed.PASS, ["20.0 dB"]),
        ({"psnr_db": 19.99}, Observed.DEGRADED, ["PSNR", "20 dB"]),
        ({"ssim": 0.7499}, Observed.DEGRADED, ["SSIM", "0.75"]),
        ({"alignment": 0.8}, Observed.DEGRADED, ["alignment", "87.0%"]),
        # Without a judge, and of metrics that are not there, nothing is held against the cell.
        ({"alignment": None, "large_alignment": None}, Observed.PASS, ["22.0 dB"]),
        ({"is_identical_to_blend": True}, Observed.INERT, ["without them"]),
        ({"num_other_forwards": 0}, Observed.INERT, ["large denoiser"]),
        ({"is_identical_to_large": True, "psnr_db": None}, Observed.INERT, ["bit for bit"]),
        # A stack on large-only calls no other denoiser, and is not inert for that.
        ({"is_identical_to_blend": False, "num_other_forwards": 0}, Observed.PASS, ["22.0 dB"]),
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
    _, reasons = observe(dataclasses.replace(GOOD, psnr_db=5.0, ssim=0.1, alignment=0.1), BUDGET)
    assert len(reasons) == 3


def test_broken_outweighs_inert_and_degraded() -> None:
    seen = dataclasses.replace(GOOD, is_warm_equal=False, is_identical_to_blend=True, psnr_db=1.0)
    assert observe(seen, BUDGET)[0] is Observed.BROKEN


def test_an_output_that_is_no_number_is_broken_and_nothing_else_is_said_of_it() -> None:
    seen = dataclasses.replace(GOOD, is_finite=False, is_warm_equal=False, psnr_db=None)
    verdict, reasons = observe(seen, BUDGET)
    assert verdict is Observed.BROKEN
    assert reasons == ["The output holds NaN or infinity."]
