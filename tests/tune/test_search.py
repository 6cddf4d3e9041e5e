"""The search: what it may try, that it repeats itself, and what it does with stacks that cannot work."""

from __future__ import annotations

import sys

import pytest
from optuna.trial import FixedTrial

from flowblend_compat_matrix.bench import Bench
from flowblend_compat_matrix.tune.race import Configuration, Race
from flowblend_compat_matrix.tune.search import Found, search
from flowblend_compat_matrix.tune.space import CACHES, SearchSpace, schedule_text
from flowblend_plugins import StageSchedule
from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import make_adapters, make_plugin_manager

OWN, SHIFTED, OTHER = (
    "unipc(num_inference_steps={})",
    "unipc(num_inference_steps={}, flow_shift=2.0)",
    "dpmpp_2m(num_inference_steps={})",
)
SPACE = SearchSpace(10, (OWN, SHIFTED, OTHER), ("first_block_cache",))
PLAIN = {
    "num_steps": 10,
    "sampler": OWN,
    "early": 0.4,
    "late": 0.2,
    "correction": "none",
    "recalls": 0,
}


@pytest.mark.parametrize(
    ("early", "late", "recalls", "text"),
    [
        (4, 2, 0, "L:4,S:4,L:2"),
        (4, 0, 0, "L:4,S:6"),
        (4, 0, 1, "L:4,S:3,L:1,S:2"),
        (2, 2, 5, "L:3,S:1,L:1,S:1,L:2,S:1,L:1"),
        (8, 2, 3, "L:10"),
        (9, 4, 0, "L:10"),
    ],
)
def test_a_schedule_covers_the_steps(early: int, late: int, recalls: int, text: str) -> None:
    found = schedule_text(10, early, late, recalls)
    letters = [one.denoiser for one in StageSchedule.parse(found).assignments(10)]
    assert len(letters) == 10
    if early + late < 10:
        assert letters.count("L") == early + late + recalls
    if recalls < 5:
        assert found == text


@pytest.mark.parametrize(
    ("changes", "adapters"),
    [
        ({"cache": "none"}, ()),
        ({"cache": "none", "num_steps": 8}, ("unipc(num_inference_steps=8)",)),
        ({"cache": "none", "sampler": OTHER}, ("dpmpp_2m(num_inference_steps=10)",)),
        ({"cache": "none", "sampler": SHIFTED}, ("unipc(num_inference_steps=10, flow_shift=2.0)",)),
        ({"cache": "none", "correction": "corrected", "damping": 0.5}, ("corrected(damping=0.5)",)),
        (
            {"cache": "none", "correction": "forecast", "recall_every": 3, "trend": 0.5},
            ("forecast(recall_every=3, trend=0.5)",),
        ),
        ({"cache": "none", "correction": "guided_refresh", "refresh": 0.2}, ("guided_refresh(threshold=0.20)",)),
        (
            {"cache": "first_block_cache", "first_block_cache_threshold": 0.2, "cached": "L"},
            ("first_block_cache(threshold=0.200, denoisers='L')",),
        ),
    ],
)
def test_parameters_become_adapters_that_exist(changes: dict[str, object], adapters: tuple[str, ...]) -> None:
    found = SPACE.suggest(FixedTrial(PLAIN | changes))
    assert found.adapters == adapters
    make_adapters(make_plugin_manager(), list(found.adapters))


def test_first_guesses_are_within_the_space() -> None:
    space = SearchSpace(20, (OWN, SHIFTED), tuple(CACHES))
    found = [space.suggest(FixedTrial(guess)) for guess in space.first_guesses()]
    assert found[0] == Configuration("L:8,S:8,L:4")
    assert len(set(found)) == len(found)


def run_search(bench: Bench, space: SearchSpace = SPACE, num_trials: int = 9) -> Found:
    return search(Race(bench), space, num_trials, seed=3, cost="flops", prompts_per_trial=1)


def test_by_flops_the_same_seed_finds_the_same(bench: Bench) -> None:
    first, second = run_search(bench), run_search(bench)
    assert [(one.configuration, one.psnr_db, one.flops_fraction) for one in first.front] == [
        (one.configuration, one.psnr_db, one.flops_fraction) for one in second.front
    ]
    assert first.num_tried == second.num_tried
    costs = [one.flops_fraction for one in first.front]
    assert costs == sorted(costs, reverse=True)
    assert first.large.psnr_db == 99.0


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
    assert race.try_one(found, [0], 15.0) is None
    assert "UNet" in race.refused[found]
    assert race.run([found, Configuration("LSL")], [0])[0].configuration == Configuration("LSL")


def test_a_hopeless_stack_is_shown_one_prompt(bench: Bench) -> None:
    shown: list[str] = []
    bench.tick = shown.append
    race = Race(bench)
    race.try_one(Configuration("SSS"), [0, 1], give_up_below_db=98.0)
    assert len([one for one in shown if "video 2" in one]) == 0
    race.try_one(Configuration("SSS"), [0, 1], give_up_below_db=0.0)
    assert len([one for one in shown if "video 2" in one]) == 2


def test_without_optuna_the_extra_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"optuna.*flowblend-plugins\[tune\]"):
        run_search(bench)
