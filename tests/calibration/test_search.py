"""The two definitions of a boundary, on curves that are known: the search finds what the whole grid finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_plugins.calibration.curve import boundaries_of_divergence
from flowblend_plugins.calibration.search import (
    boundaries_on_grid,
    candidates,
    resolution,
    shortest_early,
    sufficient_late,
)

rises = st.lists(st.floats(0.0, 1.0), min_size=60, max_size=60).map(sorted)


class Curves:
    """A similarity that rises with the early stage, and an artefact metric that falls ever more slowly."""

    def __init__(self, num_steps: int, similarities: list[float], falls: list[float]) -> None:
        self.num_steps = num_steps
        self.similarities = [*similarities[:num_steps], 1.0]
        self.falls = sorted(falls, reverse=True)
        self.tried: set[tuple[int, int]] = set()

    def similarity(self, early: int, late: int) -> float:
        assert late == 0
        self.tried.add((early, late))
        return self.similarities[early]

    def artefact(self, early: int, late: int) -> float:
        self.tried.add((early, late))
        falls = self.falls[: self.num_steps - early]
        return sum(falls[late:])  # nothing is left where all that remains is large


@given(num_steps=st.integers(1, 60), similarities=rises, falls=rises, threshold=st.floats(0.0, 1.0))
def test_the_search_finds_what_the_grid_finds(
    num_steps: int, similarities: list[float], falls: list[float], threshold: float
) -> None:
    curves = Curves(num_steps, similarities, falls)
    unit = resolution(num_steps)
    early = shortest_early(curves.similarity, num_steps, threshold, unit)
    assert len(curves.tried) <= 5, "bisection of twenty candidates"
    late, is_limited = sufficient_late(curves.artefact, num_steps, early, unit)
    grid = boundaries_on_grid(curves.similarity, curves.artefact, num_steps, threshold, unit)
    assert early == grid.early_steps
    assert not is_limited
    left = num_steps - early
    if left and (without := curves.artefact(early, 0)) > 0:
        # Equal falls make ties, where either is the best; so it is the price that must be the grid's.
        price = [curves.artefact(early, steps) / without + steps / left for steps in (late, grid.late_steps)]
        assert price[0] == pytest.approx(price[1], abs=1e-9)
    else:
        assert late == grid.late_steps == 0


@given(num_steps=st.integers(1, 60), values=st.lists(st.floats(0.0, 1.0), min_size=60, max_size=60))
def test_a_similarity_that_wavers_still_gives_a_crossing(num_steps: int, values: list[float]) -> None:
    unit = resolution(num_steps)
    early = shortest_early(lambda steps, late: values[steps], num_steps, 0.5, unit)
    lengths = candidates(num_steps, unit)
    place = lengths.index(early)
    assert early == num_steps or values[early] >= 0.5
    assert place == 0 or values[lengths[place - 1]] < 0.5


def test_the_late_scan_is_not_deceived_by_a_weak_first_step() -> None:
    weak = [10.0, 9.5, 6.0, 4.0, 3.2, 2.6, 2.0, 1.5, 1.0, 0.5, 0.0]
    assert sufficient_late(lambda early, late: weak[late], 10, 0, 1) == (3, False)


def test_the_late_scan_ends_with_the_budget_and_says_so() -> None:
    steep = [100.0, 60.0, 40.0, 25.0, 12.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    assert sufficient_late(lambda early, late: steep[late], 10, 0, 1) == (4, False)
    assert sufficient_late(lambda early, late: steep[late], 10, 0, 1, lambda late: late < 4) == (3, True)
    assert sufficient_late(lambda early, late: steep[late], 10, 0, 1, lambda late: False) == (0, True)


def test_candidates_are_a_twentieth_apart() -> None:
    assert [resolution(steps) for steps in (1, 10, 20, 40, 50, 100)] == [1, 1, 1, 2, 2, 5]
    assert candidates(7, 3) == [0, 3, 6, 7]


@pytest.mark.parametrize(
    ("values", "boundaries"),
    [
        ([1.0, 0.8, 0.4, 0.2, 0.2, 0.3, 0.7], (2, 1)),  # U-shaped, as in FlowBlending
        ([0.1, 0.9, 0.7, 0.4, 0.2, 0.1], (3, 0)),  # low in pure noise, and no rise at the end
        ([0.2, 0.1, 0.1, 0.1, 0.6, 0.9], (0, 2)),
        ([0.5, 0.5, 0.5], (0, 0)),
        ([0.5], (0, 0)),
    ],
)
def test_boundaries_at_half_the_height(values: list[float], boundaries: tuple[int, int]) -> None:
    assert boundaries_of_divergence(values) == boundaries


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=60))
def test_boundaries_of_any_curve_fit_into_its_steps(values: list[float]) -> None:
    early, late = boundaries_of_divergence(values)
    assert early >= 0
    assert late >= 0
    assert early + late <= len(values)
