"""The front, the choice and the comparison, beside what pencil and paper give."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_compat_matrix.tune.front import Budget, best_fronts, choose, pareto_front
from flowblend_compat_matrix.tune.race import Configuration, Point
from flowblend_plugins.errors import FlowBlendError, UsageError
from flowblend_research.frontier.advantage import advantages, levels, usual_ratio

Make = Callable[..., Point]
AXIS = st.floats(0.5, 60).map(lambda value: round(value, 1))


def test_only_unbeaten_points_stay_and_the_costliest_comes_first(point: Make) -> None:
    slow, middle, beaten, fast = point(1.1, 40), point(1.8, 30), point(1.5, 29), point(3.0, 18)
    assert pareto_front([fast, beaten, slow, middle]) == [slow, middle, fast]


def test_what_is_saved_decides_who_is_on_the_front(point: Make) -> None:
    by_time = point(2.0, 30, flops_fraction=0.8)
    by_flops = point(1.2, 30, flops_fraction=0.4)
    assert pareto_front([by_time, by_flops]) == [by_time]
    assert pareto_front([by_time, by_flops], "flops") == [by_flops]


@given(st.lists(st.tuples(AXIS, AXIS), max_size=30))
def test_a_front_is_what_no_point_beats(pairs: list[tuple[float, float]]) -> None:
    points = [
        Point(Configuration(str(number)), speed, (speed, speed), 1 / speed, db, 0.0, 1.0, 0.0)
        for number, (speed, db) in enumerate(pairs)
    ]
    front = {(one.speedup, one.psnr_db) for one in pareto_front(points)}
    unbeaten = {
        (one.speedup, one.psnr_db)
        for one in points
        if not any(
            other.speedup >= one.speedup
            and other.psnr_db >= one.psnr_db
            and (other.speedup, other.psnr_db) != (one.speedup, one.psnr_db)
            for other in points
        )
    }
    assert front == unbeaten


def test_finalists_are_the_front_and_then_the_next_one(point: Make) -> None:
    slow, middle, fast = point(1.1, 40), point(1.5, 35), point(2.0, 30)
    next_slow, next_fast, last = point(1.1, 39), point(2.0, 29), point(1.0, 9)
    everything = [last, next_slow, middle, next_fast, slow, fast]
    assert best_fronts(everything, 2) == [slow, fast], "the ends of a front that is too long"
    assert best_fronts(everything, 3) == [slow, middle, fast]
    assert best_fronts(everything, 5) == [slow, middle, fast, next_slow, next_fast]
    assert best_fronts(everything, 9) == [slow, middle, fast, next_slow, next_fast, last]


def test_the_cheapest_stack_within_the_budget_is_chosen(point: Make) -> None:
    large = point(1.0, 99)
    kept, bold = point(1.6, 26), point(2.4, 24.9)
    assert choose([kept, bold, point(1.2, 40)], large, Budget(min_psnr_db=25)) == kept
    assert choose([kept, bold], large, Budget(min_psnr_db=20)) == bold


def test_alignment_is_kept_as_a_share_of_large_onlys(point: Make) -> None:
    large = point(1.0, 99, alignment=0.9)
    good, poor = point(1.5, 20, alignment=0.86), point(2.5, 20, alignment=0.84)
    assert choose([good, poor], large, Budget(min_alignment=0.95)) == good  # 0.855 is asked for
    with pytest.raises(UsageError, match="--min-psnr"):
        choose([point(1.5, 20, alignment=math.nan)], large, Budget(min_alignment=0.95))


def test_a_budget_that_nobody_keeps_says_what_came_nearest(point: Make) -> None:
    with pytest.raises(FlowBlendError, match=r"keeps 50 dB PSNR.*LSL: 30\.0 dB at 1\.40.*--trials"):
        choose([point(1.4, 30, "LSL"), point(2, 20)], point(1, 99), Budget(min_psnr_db=50))
    with pytest.raises(FlowBlendError, match="refused"):
        choose([], point(1, 99), Budget(min_psnr_db=50))
    with pytest.raises(UsageError, match=r"--min-psnr.*--min-alignment"):
        Budget()


def test_levels_compare_the_cheapest_of_both_sides_without_interpolating(point: Make) -> None:
    measured = {
        "TeaCache": [point(1.5, 30), point(2.0, 21.5)],
        "plain LSL": [point(1.6, 22.5)],
        "LSL + TeaCache": [point(9.0, 34)],  # neither single nor tuned: it is in nobody's way
        "tuned": [point(1.8, 31), point(2.6, 22)],
    }
    found = {level.psnr_db: level for level in levels(measured)}
    assert sorted(found) == list(range(20, 31)), "above 30 dB no single technique is left, above 31 no stack"
    assert found[20].technique == found[21].technique == "TeaCache"
    assert found[21].ratio == pytest.approx(2.6 / 2.0)
    assert found[22].technique == "plain LSL"
    assert found[22].ratio == pytest.approx(2.6 / 1.6)
    assert found[23].technique == "TeaCache"
    assert found[23].ratio == pytest.approx(1.8 / 1.5)
    assert usual_ratio(list(found.values())) == pytest.approx(1.8 / 1.5)


def test_every_operating_point_of_a_single_technique_meets_the_fastest_stack_as_faithful(point: Make) -> None:
    measured = {
        "TeaCache": [point(1.5, 30), point(1.1, 45)],
        "LSL + TeaCache": [point(9.0, 34)],
        "tuned": [point(1.8, 31), point(2.6, 22)],
    }
    assert [one.ratio for one in advantages(measured)] == [pytest.approx(1.2), None]


def test_no_common_level_is_no_median() -> None:
    with pytest.raises(ValueError, match="useful range"):
        usual_ratio([])
