"""The search: what it may try, that it repeats itself, and what it does with stacks that cannot work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random

import pytest
from optuna.trial import FixedTrial

from flowblend_compat_matrix.measuring.bench import Bench
from flowblend_compat_matrix.tune.front import pareto_front
from flowblend_compat_matrix.tune.moves import neighbour
from flowblend_compat_matrix.tune.race import Configuration, Point, Race
from flowblend_compat_matrix.tune.search import Found, Walk, search
from flowblend_compat_matrix.tune.space import CACHES, SearchSpace, letters_of, schedule_text
from flowblend_plugins import StageSchedule
from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import make_adapters, make_plugin_manager

OWN, SHIFTED, OTHER = (
    "unipc(num_inference_steps={})",
    "unipc(num_inference_steps={}, flow_shift=2.0)",
    "dpmpp_2m(num_inference_steps={})",
)
SPACE = SearchSpace(10, (OWN, SHIFTED, OTHER), ("first_block_cache",), moments="reference")
PLAIN = {
    "num_steps": 10,
    "sampler": OWN,
    "early": 0.4,
    "late": 0.2,
    "correction": "none",
    "recalls": 0,
}


@pytest.mark.parametrize(
    ("changes", "letters"),
    [
        ({}, "LLLLSSSSLL"),
        ({"late": 0.0}, "LLLLSSSSSS"),
        ({"late": 0.0, "recalls": 1}, "LLLLSSSLSS"),
        ({"early": 0.6, "late": 0.3, "recalls": 4}, "LLLLLLLLLL"),
        ({"correction": "forecast", "recall_every": 3, "trend": 1.0, "late": 0.0, "early": 0.2}, "LLSSLSSLSS"),
        ({"correction": "fitted_forecast", "recall_every": 3, "late": 0.0, "early": 0.2}, "LLSSLSSLSS"),
    ],
)
def test_a_schedule_covers_the_steps(changes: dict[str, object], letters: str) -> None:
    schedule = SPACE.suggest(FixedTrial(PLAIN | {"cache": "none"} | changes)).schedule
    assert letters_of(schedule) == letters
    assert schedule_text(letters) == schedule
    assert [one.denoiser for one in StageSchedule.parse(schedule).assignments(10)] == list(letters)


def test_a_neighbour_differs_in_one_thing() -> None:
    start, choice = Configuration("L:4,S:4,L:2", ("forecast(recall_every=0, trend=0.5)",)), Random(0)
    found = {one for _ in range(400) if (one := neighbour(SPACE, start, choice)) is not None}
    resteps, resized, solvers, forecasts = set(), set(), set(), set()
    for one in found:
        letters, sampler, rest = SPACE.taken_apart(one)
        assert SPACE.put_together(letters, sampler, rest) == one
        assert letters[0] == "L"
        if rest != start.adapters:
            forecasts.add((one.schedule, sampler, *rest))
        elif sampler != OWN:
            solvers.add((one.schedule, sampler))
        elif len(letters) != 10:
            resized.add((len(letters), letters.count("L"), one.adapters))
        else:
            changed = [index for index in range(10) if letters[index] != "LLLLSSSSLL"[index]]
            resteps.add((len(changed), letters.count("L") - 6))
    assert resteps == {(2, 0), (1, 1), (1, -1)}
    assert resized == {(9, 6, ("unipc(num_inference_steps=9)", *start.adapters))}
    assert solvers == {(start.schedule, SHIFTED), (start.schedule, OTHER)}
    assert forecasts == {
        (start.schedule, OWN, text) for text in SPACE.forecasts if text != "forecast(recall_every=0, trend=0.5)"
    }
    assert "forecast(recall_every=0, moments='reference')" in SPACE.forecasts
    longer = {neighbour(SPACE, Configuration("L:8", ("unipc(num_inference_steps=8)",)), choice) for _ in range(999)}
    assert Configuration("L:8,S:1", ("unipc(num_inference_steps=9)",)) in longer


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
            ("forecast(recall_every=0, trend=0.5)",),
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


class PencilAndPaper:
    """Measures what can be said beforehand: a large step gains 5 dB, and a tenth for every place it stands later."""

    def __init__(self, point: Callable[..., Point]) -> None:
        self.point, self.tried = point, list[str]()

    def try_one(self, configuration: Configuration, numbers: range, give_up_below_db: float) -> Point:
        letters = letters_of(configuration.schedule)
        places = [index for index, letter in enumerate(letters) if letter == "L"]
        self.tried.append(letters)
        return self.point(10.0 / len(places), 5.0 * len(places) + 0.1 * sum(places), configuration.schedule)


def test_the_walk_moves_steps_where_they_gain_and_stays_near_the_budget(point: Callable[..., Point]) -> None:
    race = PencilAndPaper(point)
    front = [race.try_one(Configuration(f"L:{num},S:{12 - num}"), range(1), 0.0) for num in range(2, 9)]
    race.tried.clear()
    walk = Walk(race, SearchSpace(12, (OWN,), ()), "time", range(1), min_psnr_db=22.0)  # type: ignore[arg-type]
    found = walk.go([one.configuration for one in front], Random(0), range(300), lambda done, text: None)
    best = {letters_of(one.configuration.schedule).count("L"): one for one in pareto_front(found)}
    assert letters_of(best[4].configuration.schedule) == "LSSSSSSSSLLL", "the first step stays"
    assert len(race.tried) == len(set(race.tried)) == len(found)
    assert {letters.count("L") for letters in race.tried[len(front) :]} <= {2, 3, 4, 5, 6, 7}, "19 to 30 dB, one apart"
    assert letters_of(best[8].configuration.schedule) == "LLLLLLLLSSSS", "too faithful for this budget to be bothered"


def test_computed_stacks_come_first_and_spare_the_sampling(bench: Bench) -> None:
    computed = SearchSpace(20, (OWN,), (), "reference").computed(30.0)
    assert all(len(letters_of(one.schedule)) == 20 and one.schedule.startswith("L:") for one in computed)
    nearest = {letters_of(one.schedule).count("L") for one in computed[:2]}
    assert nearest <= {6, 7}, "predicted 28 and 31 dB"
    assert SearchSpace(12, (OWN,), (), "reference").computed(30.0) == []
    start = [Configuration("L:2,S:8"), Configuration("L:3,S:7")]
    tried: list[str] = []
    search(Race(bench), SPACE, 2, seed=3, cost="flops", start=start, report=lambda done, text: tried.append(text))
    assert [text.split(":")[0] + ":" + text.split(":")[1][0] for text in tried] == ["L:2", "L:3"]


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
