"""Observed verdicts: every fault is named, the worst wins, and the budget bites on its own side only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flowblend_compat_matrix.verdicts import Observation, Observed, QualityBudget, observe

BUDGET = QualityBudget(min_psnr_db=20.0, min_ssim=0.75, min_alignment_kept=0.96)
GOOD = Observation(
    is_large_alone=False,
    is_finite=True,
    is_warm_equal=True,
    is_teardown_clean=True,
    is_identical_to_large=False,
    is_identical_to_blend=None,
    num_other_forwards=20,
    psnr_db=23.0,
    ssim=0.83,
    alignment=0.9,
    large_alignment=0.92,
)


def verdict(**changes: object) -> tuple[Observed, str]:
    found, reasons = observe(replace(GOOD, **changes), BUDGET)
    assert reasons, "a verdict without a reason"
    return found, " ".join(reasons)


def test_within_the_budget() -> None:
    found, reason = verdict()
    assert found is Observed.PASS
    assert "23.0 dB" in reason
    assert "97.8%" in reason


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"psnr_db": 19.99}, "PSNR"),
        ({"ssim": 0.7499}, "SSIM"),
        ({"alignment": 0.96 * 0.92 - 1e-6}, "alignment"),
    ],
)
def test_each_bound_degrades_alone(changes: dict[str, object], named: str) -> None:
    found, reason = verdict(**changes)
    assert found is Observed.DEGRADED
    assert named in reason
    assert reason.count("under the budget") == 1


def test_a_value_on_the_bound_passes() -> None:
    assert verdict(psnr_db=20.0, ssim=0.75, alignment=0.96, large_alignment=1.0)[0] is Observed.PASS


def test_all_bounds_are_reported_at_once() -> None:
    assert verdict(psnr_db=5.0, ssim=0.1, alignment=0.1)[1].count("under the budget") == 3


def test_without_a_judge_alignment_plays_no_part() -> None:
    found, reason = verdict(alignment=None, large_alignment=None)
    assert found is Observed.PASS
    assert "alignment" not in reason


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"is_finite": False}, "NaN"),
        ({"is_warm_equal": False}, "same seed"),
        ({"is_teardown_clean": False}, "left behind"),
        ({"is_large_alone": True, "num_other_forwards": 0}, "under the router"),
    ],
)
def test_what_must_be_so_and_is_not_is_broken_even_within_the_budget(changes: dict[str, object], named: str) -> None:
    found, reason = verdict(**changes)
    assert found is Observed.BROKEN
    assert named in reason


def test_broken_outranks_inert_and_degraded() -> None:
    found, _ = verdict(is_teardown_clean=False, is_identical_to_blend=True, psnr_db=1.0)
    assert found is Observed.BROKEN


def test_large_alone_is_expected_to_change_nothing() -> None:
    found, reason = verdict(is_large_alone=True, is_identical_to_large=True, num_other_forwards=0, psnr_db=None)
    assert found is Observed.PASS
    assert "bit for bit" in reason


@pytest.mark.parametrize(
    "changes",
    [
        {"is_identical_to_blend": True},
        {"num_other_forwards": 0, "is_identical_to_large": True, "psnr_db": None},
        {"is_identical_to_large": True, "psnr_db": None, "ssim": 1.0},
    ],
)
def test_what_changes_nothing_is_inert(changes: dict[str, object]) -> None:
    assert verdict(**changes)[0] is Observed.INERT


def test_adapters_on_the_large_denoiser_alone_are_not_inert_for_want_of_small_steps() -> None:
    assert verdict(num_other_forwards=0, is_identical_to_blend=False)[0] is Observed.PASS
