"""Charts: points and labels in place, a Pareto front that is one, the product of the parts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flowblend_compat_matrix.report.charts import (
    WIDTH,
    Marked,
    line_chart,
    pareto_front,
    ratio_ticks,
    ratio_to_x,
    scatter,
)
from flowblend_compat_matrix.report.stacking import stacking_chart
from tests.report.samples import cell


def test_pareto_front_against_every_pair_of_points() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.integers(0, 8, size=(40, 2))]
    beaten = {p for p in points for q in points if q != p and q[0] >= p[0] and q[1] >= p[1]}
    assert sorted(pareto_front(points)) == sorted(set(points) - beaten)


def test_charts_keep_inside_their_box_and_labels_apart() -> None:
    marked = [Marked(f"cell {n}", "pass", "", 1.0 + n / 50, (0.9, 2.0), 20.0 + n / 10) for n in range(6)]
    marked.append(Marked("LLL", "pass", "", 1.0, (0.98, 1.02), math.inf))
    chart = scatter(marked, budget=20.0)
    for point in chart.points:
        assert chart.left <= point.low <= point.x <= point.high <= WIDTH
        assert 0 <= point.y <= chart.bottom
    assert chart.points[-1].y == chart.band_y < chart.top
    faster, better = (chart.points[5], chart.points[0])
    assert faster.x > better.x
    assert chart.points[5].y < chart.points[0].y, "more dB is further up"
    assert len({(point.text.x, point.text.y) for point in chart.points}) == len(chart.points)


def test_what_is_broken_is_drawn_and_beats_nobody() -> None:
    good = Marked("LSL", "pass", "", 1.4, (1.3, 1.5), 22.0)
    broken = Marked("LSS", "broken", "", 9.0, (8.0, 10.0), 99.0)
    chart = scatter([good, broken], budget=None)
    assert len(chart.points) == 2
    assert chart.front == f"{chart.points[0].x:.1f},{chart.points[0].y:.1f}"


@pytest.mark.parametrize(("low", "high"), [(0.98, 1.02), (0.7, 1.6), (1.0, 3.0), (0.84, 11.1), (1.0, 180.0)])
def test_equal_factors_are_equally_far_apart(low: float, high: float) -> None:
    ticks, start, end = ratio_ticks(low, high)
    assert start < low < high < end
    assert 2 <= len(ticks) <= 8
    assert all(start <= tick <= end for tick in ticks)
    assert all(f"{tick:g}" == f"{tick:.3g}" for tick in ticks), "round"
    middle = ratio_to_x((low * high) ** 0.5, start, end)
    assert middle == pytest.approx((ratio_to_x(low, start, end) + ratio_to_x(high, start, end)) / 2)


def test_boundaries_stand_between_the_steps() -> None:
    values = [(step, 0.5 + step / 100) for step in range(50)]
    chart = line_chart("t", "y", [("all", "cond", values)], boundaries=[20, 40])
    assert [zone.label for zone in chart.zones] == ["early", "intermediate", "late"]
    xs = [float(pair.split(",")[0]) for pair in chart.lines[0].points.split()]
    start = chart.zones[1].x
    assert xs[19] < start < xs[20]
    assert xs[39] < chart.zones[2].x < xs[40]
    assert chart.zones[2].x + chart.zones[2].width == pytest.approx(chart.right)
    assert all(0 <= float(pair.split(",")[1]) <= chart.height for pair in chart.lines[0].points.split())


def test_a_stack_that_multiplies_stands_on_the_diagonal() -> None:
    cells = [
        cell(id="as promised", speedup_over_large=2.0, stacking_efficiency=1.0),
        cell(id="less", speedup_over_large=2.0, stacking_efficiency=0.8),
        cell(id="more", speedup_over_large=2.0, stacking_efficiency=1.25),
        cell(id="alone"),
    ]
    chart = stacking_chart(list(enumerate(cells)))
    assert chart is not None
    (x0, y0), (x1, y1) = ([float(part) for part in pair.split(",")] for pair in chart.diagonal.split())

    def above(x: float, y: float) -> float:
        return y0 + (x - x0) / (x1 - x0) * (y1 - y0) - y

    heights = [above(point.x, point.y) for point in chart.points]
    assert [point.cell for point in chart.points] == [0, 1, 2]
    assert heights[0] == pytest.approx(0.0, abs=1e-6)
    assert heights[1] < 0 < heights[2]
    assert "2.50× from the parts" in chart.points[1].title
    assert "median of 3 stacks reaches 1.00" in chart.summary
    assert stacking_chart([(0, cell())]) is None
