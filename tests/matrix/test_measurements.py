"""Ratios are taken round by round, and what does not exist is null."""

from __future__ import annotations

import numpy as np
import pytest

from flowblend_compat_matrix.measuring.fidelity import each, over_prompts
from flowblend_compat_matrix.measuring.measurements import describe_times
from flowblend_compat_matrix.measuring.metrics import psnr_db
from flowblend_compat_matrix.results.matrix_results import CellResult


def empty_result() -> CellResult:
    return CellResult(id="LSL", pair="tiny", schedule="LSL", adapters=[])


def test_a_slow_round_slows_both_sides_and_leaves_the_ratio() -> None:
    result = empty_result()
    describe_times({"cell": [10.0, 100.0, 10.0], "large": [20.0, 200.0, 20.0]}, result)
    assert result.speedup_over_large == pytest.approx(2.0)
    assert result.speedup_over_large_range == pytest.approx([2.0, 2.0])
    assert result.latency_ms == pytest.approx(10.0)
    assert result.latency_ms_range == pytest.approx([10.0, 100.0])


def test_without_adapters_there_is_no_efficiency_of_stacking() -> None:
    result = empty_result()
    describe_times({"cell": [1.0], "large": [2.0]}, result)
    assert result.speedup_over_blend is result.speedup_over_stack is result.stacking_efficiency is None


def test_stacking_efficiency_is_observed_over_the_product_of_the_parts() -> None:
    result = empty_result()
    # Alone the blend gives 2x and the stack 3x; together they give 4.5x of the 6x they could.
    describe_times({"cell": [10.0], "large": [45.0], "blend": [22.5], "stack": [15.0]}, result)
    assert result.speedup_over_large == pytest.approx(4.5)
    assert result.speedup_over_blend == pytest.approx(2.25)
    assert result.speedup_over_stack == pytest.approx(1.5)
    assert result.stacking_efficiency == pytest.approx(4.5 / 6.0)


def test_infinite_values_are_no_part_of_the_mean() -> None:
    wanted = np.random.default_rng(0).random((2, 3, 16, 16, 3), dtype=np.float32)
    half_equal = wanted.copy()
    half_equal[1] = np.clip(half_equal[1] + 0.1, 0.0, 1.0)
    mean, std = over_prompts(each("psnr_db", psnr_db, half_equal, wanted))
    assert mean == pytest.approx(psnr_db(half_equal[1], wanted[1]))
    assert std == 0.0
    assert over_prompts(each("psnr_db", psnr_db, wanted, wanted)) == (None, None)


def test_a_failing_metric_is_named() -> None:
    def failing(video: object, wanted: object) -> float:
        raise ZeroDivisionError("of course")

    videos = np.zeros((1, 3, 16, 16, 3), dtype=np.float32)
    with pytest.raises(RuntimeError, match=r"'mine' failed: ZeroDivisionError: of course"):
        each("mine", failing, videos, videos)
