"""Computed stacks against single techniques, beside what pencil and paper give."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowblend_research.frontier.advantage import advantages, levels, usual_ratio
from flowblend_research.frontier.race import Point

Make = Callable[..., Point]


def test_levels_compare_the_cheapest_of_both_sides_without_interpolating(point: Make) -> None:
    measured = {
        "TeaCache": [point(1.5, 30), point(2.0, 21.5)],
        "plain LSL": [point(1.6, 22.5)],
        "LSL + TeaCache": [point(9.0, 34)],  # neither single nor computed: it is in nobody's way
        "computed": [point(1.8, 31), point(2.6, 22)],
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
        "computed": [point(1.8, 31), point(2.6, 22)],
    }
    assert [one.ratio for one in advantages(measured)] == [pytest.approx(1.2), None]


def test_no_common_level_is_no_median() -> None:
    with pytest.raises(ValueError, match="useful range"):
        usual_ratio([])
