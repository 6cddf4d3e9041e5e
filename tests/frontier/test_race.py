"""Stacks measured side by side, and what cannot work told apart."""

from __future__ import annotations

import pytest

from flowblend_compat_matrix.measuring.bench import Bench
from flowblend_research.frontier.race import Configuration, Race


def test_a_point_is_what_the_stack_gives_by_itself(bench: Bench) -> None:
    """Two runs of one stack in two races agree to the bit; large-only against itself is exact."""
    same, blended = Configuration("LLL"), Configuration("L:4,S:4,L:2", ("corrected",))
    large, once = Race(bench).run([same, blended], [0, 1])
    (again,) = Race(bench).run([blended], [0, 1])
    assert large.psnr_db == 99.0
    assert large.flops_fraction == 1.0
    assert (once.psnr_db, once.flops_fraction) == (again.psnr_db, again.flops_fraction)
    assert once.psnr_db < 99.0
    assert 0.5 < once.flops_fraction < 1.0


def test_fewer_steps_count_as_fewer_flops(bench: Bench) -> None:
    (half,) = Race(bench).run([Configuration("LLL", ("unipc(num_inference_steps=5)",))], [0])
    assert half.flops_fraction == pytest.approx(0.5)


def test_a_refused_stack_is_told_apart_and_not_run(bench: Bench) -> None:
    found = Configuration("LSL", ("deepcache",))
    race = Race(bench)
    (measured,) = race.run([found, Configuration("LSL")], [0])
    assert measured.configuration == Configuration("LSL")
    assert "UNet" in race.refused[found]
