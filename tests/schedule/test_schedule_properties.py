"""Stage schedules for any letters, fractions, runs, sigmas and numbers of steps."""

from __future__ import annotations

import itertools
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import flowblend_plugins as fb
from flowblend_plugins.schedule import NAMED_SCHEDULES

LETTERS = st.sampled_from(string.ascii_uppercase)
NAMES = st.one_of(st.sampled_from(NAMED_SCHEDULES), st.text(string.ascii_uppercase, min_size=3, max_size=3))
FRACTIONS = st.floats(0.0, 1.0).flatmap(lambda early: st.tuples(st.just(early), st.floats(0.0, 1.0 - early)))
NUM_STEPS = st.integers(1, 200)
RUNS = st.lists(st.tuples(LETTERS, st.integers(1, 30)), min_size=1, max_size=8)


def falling_sigmas(min_size: int, max_size: int = 12) -> st.SearchStrategy[list[float]]:
    sigmas = st.floats(0.0, 200.0, exclude_min=True)
    return st.lists(sigmas, min_size=min_size, max_size=max_size, unique=True).map(lambda s: sorted(s, reverse=True))


def letters_of(schedule: fb.StageSchedule, num_steps: int, sigmas: list[float] | None = None) -> str:
    return "".join(assignment.denoiser for assignment in schedule.assignments(num_steps, sigmas))


def described(text: str) -> str:
    """The letters that a description such as ``"L 1-20, S 21"`` gives to the steps."""
    letters = ""
    for piece in text.split(", "):
        letter, steps = piece.split(" ")
        first, _, last = steps.partition("-")
        assert int(first) == len(letters) + 1
        letters += letter * (int(last or first) - int(first) + 1)
    return letters


@given(NAMES, FRACTIONS, NUM_STEPS)
def test_a_named_schedule_covers_every_step_once_in_three_stages(
    name: str, fractions: tuple[float, float], num_steps: int
) -> None:
    assignments = fb.StageSchedule.named(name, *fractions).assignments(num_steps)
    assert len(assignments) == num_steps
    stages = [assignment.stage for assignment in assignments]
    assert stages == sorted(stages, key=list(fb.Stage).index)
    assert all(name[list(fb.Stage).index(stage)] == letter for letter, stage in assignments)


@given(NAMES, FRACTIONS, NUM_STEPS)
def test_boundaries_move_along_with_the_number_of_steps(
    name: str, fractions: tuple[float, float], num_steps: int
) -> None:
    early, late = fractions
    stages = [a.stage for a in fb.StageSchedule.named(name, early, late).assignments(num_steps)]
    assert abs(stages.count(fb.Stage.EARLY) - early * num_steps) <= 0.5 + 1e-6
    # Where the early stage was rounded up to the end there may be no whole step left for the late one.
    assert abs(stages.count(fb.Stage.LATE) - late * num_steps) <= 1.0 + 1e-6


@given(st.integers(0, 10), st.integers(0, 10), st.integers(1, 20))
def test_whole_steps_are_kept_exactly_when_the_number_of_steps_is_multiplied(
    early: int, late: int, factor: int
) -> None:
    num_steps = 20
    schedule = fb.StageSchedule.named("ABC", early / num_steps, late / num_steps)
    short, long = letters_of(schedule, num_steps), letters_of(schedule, num_steps * factor)
    assert long == "".join(letter * factor for letter in short)
    assert short == "A" * early + "B" * (num_steps - early - late) + "C" * late


def test_the_published_schedule_of_wan() -> None:
    assert fb.StageSchedule.parse("LSL").describe(50) == "L 1-20, S 21-40, L 41-50"


@given(RUNS)
def test_runs_cover_their_steps_and_no_other_number(runs: list[tuple[str, int]]) -> None:
    text = ",".join(f"{letter}:{count}" for letter, count in runs)
    schedule = fb.StageSchedule.parse(text)
    total = sum(count for _, count in runs)
    assert letters_of(schedule, total) == "".join(letter * count for letter, count in runs)
    assert schedule.letters == {letter for letter, _ in runs}
    for other in (total - 1, total + 1):
        with pytest.raises(fb.ScheduleError):
            schedule.assignments(other)


@given(st.data(), st.integers(1, 4), falling_sigmas(1, 40))
def test_by_sigma_every_step_gets_the_first_run_whose_bound_it_reaches(
    data: st.DataObject, num_bounds: int, sigmas: list[float]
) -> None:
    bounds = data.draw(falling_sigmas(num_bounds, num_bounds))
    letters = data.draw(st.text(string.ascii_uppercase, min_size=num_bounds + 1, max_size=num_bounds + 1))
    schedule = fb.StageSchedule.by_sigma(letters, bounds)
    expected = "".join(letters[sum(sigma < bound for bound in bounds)] for sigma in sigmas)
    assert letters_of(schedule, len(sigmas), sigmas) == expected
    assert letters_of(schedule, len(sigmas), [*sigmas, 0.0]) == expected  # schedulers append a last sigma of 0


@given(st.integers(2, 50), st.floats(0.5, 12.0), st.integers(1, 999).map(lambda n: n / 1000))
def test_by_sigma_is_the_boundary_rule_of_wan(num_steps: int, shift: float, boundary_ratio: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    boundary_timestep = boundary_ratio * scheduler.config["num_train_timesteps"]
    timesteps, sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
    # In WanPipeline: the first expert while t >= boundary_timestep. Ties are a matter of rounding t = 1000 sigma.
    expected = [None if abs(t - boundary_timestep) < 1e-3 else "LS"[t < boundary_timestep] for t in timesteps]
    letters = letters_of(fb.StageSchedule.by_sigma("LS", [boundary_ratio]), num_steps, sigmas)
    assert all(theirs in (None, ours) for theirs, ours in zip(expected, letters, strict=True))


@given(st.one_of(NAMES, RUNS.map(lambda runs: ",".join(f"{a}:{n}" for a, n in runs))), NUM_STEPS)
def test_parsing_the_text_of_a_schedule_gives_the_schedule(text: str, num_steps: int) -> None:
    schedule = fb.StageSchedule.parse(text)
    assert fb.StageSchedule.parse(schedule.text) == schedule
    assert fb.StageSchedule.parse(f" {text} ".replace(",", " , ")) == schedule
    assert fb.StageSchedule.parse(text.lower()) == schedule


@given(st.data(), st.integers(1, 5))
def test_parsing_the_text_of_a_schedule_by_sigma_gives_the_schedule(data: st.DataObject, num_bounds: int) -> None:
    bounds = data.draw(falling_sigmas(num_bounds, num_bounds))
    letters = data.draw(st.text(string.ascii_uppercase, min_size=num_bounds + 1, max_size=num_bounds + 1))
    schedule = fb.StageSchedule.by_sigma(letters, bounds)
    assert fb.StageSchedule.parse(schedule.text) == schedule
    assert fb.StageSchedule.parse(schedule.text.lower()) == schedule


@given(st.data(), NUM_STEPS)
def test_a_description_says_what_the_assignments_are(data: st.DataObject, num_steps: int) -> None:
    schedule = fb.StageSchedule.named(data.draw(NAMES), *data.draw(FRACTIONS))
    assert described(schedule.describe(num_steps)) == letters_of(schedule, num_steps)
    assert set(letters_of(schedule, num_steps)) <= schedule.letters
    pieces = [piece[0] for piece in schedule.describe(num_steps).split(", ")]
    assert all(a != b for a, b in itertools.pairwise(pieces))


@given(st.one_of(st.text(max_size=20), st.text("LSM:,>=.0123456789 ", max_size=20)))
@example("L>=.,S")
@example("L:1,S>=0.5")
@example("L>=0.4,S>=0.9,L")
@example("L:٣,S:1")
@example("L>=٠.٥,S")
@example("L>=1e999,S")
@example("")
@example(",")
@example("L:99999999999999999999999999")
def test_any_other_text_is_a_schedule_error_and_nothing_else(text: str) -> None:
    try:
        schedule = fb.StageSchedule.parse(text)
    except fb.ScheduleError:
        return
    assert fb.StageSchedule.parse(schedule.text) == schedule


@pytest.mark.parametrize("bounds", [[0.4, 0.9], [0.5, 0.5], [float("nan"), 0.5], [float("inf"), 0.5]])
def test_sigma_bounds_that_do_not_fall_are_refused(bounds: list[float]) -> None:
    with pytest.raises(fb.ScheduleError, match="sigma boundaries"):
        fb.StageSchedule.by_sigma("LSL", bounds)


@given(
    st.sampled_from(["LSL", "SSS"]),
    st.one_of(st.floats(), st.integers(-5, 5), st.none(), st.text(max_size=3)),
    st.floats(),
)
def test_any_other_fraction_is_a_schedule_error_and_nothing_else(name: str, early: object, late: float) -> None:
    try:
        schedule = fb.StageSchedule.named(name, early, late)  # type: ignore[arg-type]
    except fb.ScheduleError:
        return
    assert 0.0 <= early + late <= 1.0 + 1e-9  # type: ignore[operator]
    assert len(schedule.assignments(10)) == 10


@pytest.mark.parametrize("num_steps", [0, -1])
def test_no_steps_are_refused(num_steps: int) -> None:
    with pytest.raises(fb.ScheduleError, match="needs at least one"):
        fb.StageSchedule.parse("LSL").assignments(num_steps)


def test_sigmas_that_are_missing_are_refused() -> None:
    schedule = fb.StageSchedule.by_sigma("LS", [0.5])
    for sigmas in (None, [0.9, 0.8]):
        with pytest.raises(fb.ScheduleError, match="gives no sigma for each of its 3 steps"):
            schedule.assignments(3, sigmas)


def test_fractions_do_not_go_with_explicit_boundaries() -> None:
    for text in ("L:2,S:2", "L>=0.5,S"):
        with pytest.raises(fb.ScheduleError, match="have no meaning"):
            fb.StageSchedule.parse(text, early=0.4)
