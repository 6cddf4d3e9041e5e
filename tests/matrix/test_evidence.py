"""Verdicts hold on prompts that nobody has seen: intervals, prompts added until certain, headlines confirmed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from flowblend_compat_matrix.measuring.bench import Bench
from flowblend_compat_matrix.measuring.jobs import Batch, FinishedCell, Message, PairJob, RunSettings
from flowblend_compat_matrix.measuring.metrics import psnr_db
from flowblend_compat_matrix.measuring.prompts import PromptSet
from flowblend_compat_matrix.measuring.runner import MatrixRunner
from flowblend_compat_matrix.results.cells import CellSpec
from flowblend_compat_matrix.results.intervals import (
    CONFIDENCE,
    LOOKS,
    Spread,
    error_at,
    estimate_kept,
    estimate_mean,
    estimate_speed,
    looks_up_to,
    std_of_logs,
)
from flowblend_compat_matrix.results.matrix_results import CellResult, Matrix, PairRecord, RunRecord
from flowblend_compat_matrix.results.verdicts import QualityBudget
from flowblend_compat_matrix.running.confirming import NUM_TRIED, confirm
from flowblend_plugins import StageSchedule
from flowblend_research.verdict_study.simulation import SHAPES, TrueCell, simulate

from .conftest import CALL

VALUES = [21.0, 24.5, 19.0, 22.0, 27.5, 20.5]


def test_without_a_pilot_an_interval_is_students() -> None:
    found = estimate_mean(VALUES, 0.05, Spread(1.0, weight=0))
    wanted = stats.t.interval(0.95, len(VALUES) - 1, np.mean(VALUES), stats.sem(VALUES))
    assert (found.low, found.high) == pytest.approx(wanted)
    # A pilot lends its spread: to prompts that happen to agree, and to a single one.
    assert estimate_mean([20.0, 20.0, 20.0], 0.05, Spread(2.0)).reach > 1.0
    assert estimate_mean([20.0], 0.05, Spread(2.0)).reach > 4.0


def test_the_looks_spend_the_error_once() -> None:
    for most in (3, 4, 7, 64):
        looks = looks_up_to(most)
        assert looks[-1] == most
        assert sum(error_at(look, looks) for look in range(len(looks))) == pytest.approx(1.0 - CONFIDENCE)
    assert looks_up_to(64) == LOOKS
    # By simulation: of so many cells at the bound, the intervals of any look miss their mean no more often than that.
    random, misses = np.random.default_rng(0), 0
    for _ in range(300):
        values = (20.0 + 2.5 * random.standard_normal(LOOKS[-1])).tolist()
        found = [estimate_mean(values[:n], error_at(i, LOOKS), Spread(2.5)) for i, n in enumerate(LOOKS)]
        misses += any(not one.low <= 20.0 <= one.high for one in found)
    assert misses <= 300 * (1.0 - CONFIDENCE) + 10


def test_a_wrong_attribute_of_ten_tells_nothing_and_many_prompts_tell_four_points() -> None:
    few = estimate_kept([3, 3, 3], [3, 4, 3], 0.05, Spread(0.3))
    many = estimate_kept([3] * 64, [3] * 60 + [4] * 4, 0.05, Spread(0.3))
    assert few is not None
    assert many is not None
    assert few.value == pytest.approx(0.9)
    assert few.reach > 0.1
    assert many.reach < 0.04
    assert estimate_kept([0], [0], 0.05, Spread(0.3)) is None


def test_speed_has_an_interval_from_three_rounds_on() -> None:
    assert estimate_speed([2.0, 2.1]) is None
    rounds = [2.0, 2.2, 2.1, 2.05]
    wanted = stats.t.interval(CONFIDENCE, 3, np.mean(np.log(rounds)), stats.sem(np.log(rounds)))
    found = estimate_speed(rounds)
    assert found == pytest.approx(list(np.exp(wanted)))
    assert std_of_logs(found or [], 4) == pytest.approx(np.std(np.log(rounds), ddof=1))


def test_a_cell_is_shown_more_prompts_until_it_is_certain(make_bench: Callable[..., Bench]) -> None:
    texts = tuple(f"{number} red circles" for number in range(4))
    bench = make_bench(prompts=PromptSet(texts, batch_size=2), call=CALL | {"num_inference_steps": 3})
    spec = CellSpec(StageSchedule.named("LSL"))

    def measured(min_psnr_db: float) -> CellResult:
        budget = QualityBudget(min_psnr_db=min_psnr_db, min_ssim=-1.0)
        runner = MatrixRunner(bench, "tiny", {"psnr_db": psnr_db}, 1, budget)
        return runner.measure(spec, runner.measure_baseline()).result

    far = measured(0.0)
    assert (far.observed, far.num_prompts, far.is_screened) == ("pass", 3, False)
    assert far.psnr_db is not None
    near = measured(far.psnr_db)
    assert (near.observed, near.num_prompts) == ("undecided", 4)
    assert "not certain after 4 prompts" in near.reasons[0]
    # The prompt that is added is the one that comes next, from its own noise.
    with bench.enabled(spec):
        videos = bench.make_videos(spec, "")
    assert near.psnr_db == pytest.approx(psnr_db(videos, bench.make_videos(None, "")), rel=1e-3)
    assert near.num_forwards_run > far.num_forwards_run


# -- confirmation ------------------------------------------------------------------------------------------------------


def results(*cells: CellResult, looks: Sequence[int] = LOOKS) -> Matrix:
    pair = PairRecord(
        name="tiny", pipeline="", makes="videos", prompts=[], seeds=[], call={}, early=0.4, late=0.2
    )  # fmt: skip
    run = RunRecord(
        command="", pairs=[pair], schedules=[], stacks=[], depth=1, num_repeats=3, budget={}, num_planned=len(cells),
        executor="", is_sharing=True, looks=list(looks),
    )  # fmt: skip
    return Matrix(environment={}, run=run, cells=list(cells))


def cell(number: int, **changes: Any) -> CellResult:
    """The larger the number the faster, and the further from large-only."""
    values = {"observed": "pass", "speedup_over_large": 1.0 + number, "psnr_db": 40.0 - number, "num_prompts": 3}
    return CellResult(id=str(number), pair="tiny", schedule="LSL", adapters=[], **(values | changes))


class Elsewhere:
    """An executor that finds only these cells within the budget."""

    num_workers = 1
    cores_each: int | None = None

    def __init__(self, holds: Sequence[str], slower: Sequence[str] = ()) -> None:
        self.holds, self.slower, self.asked = holds, slower, list[RunSettings]()

    def run(self, settings: RunSettings, batches: Sequence[Batch]) -> Generator[Message, None, None]:
        self.asked.append(settings)
        for spec in (spec for batch in batches for spec in batch.cells):
            number = int(spec.schedule.text.removeprefix("L:"))
            observed = "pass" if str(number) in self.holds else "undecided"
            found = cell(number, observed=observed, num_prompts=48)
            if str(number) in self.slower:
                found.speedup_over_large = 1.0
            yield FinishedCell(found)

    def close(self) -> None: ...

    def describe(self) -> str:
        return ""


def confirmed(matrix: Matrix, elsewhere: Elsewhere) -> PairRecord:
    job = PairJob(name="tiny", preset="reference", num_prompts=64, early=0.4, late=0.2, seed=7)
    specs = {("tiny", one.id): CellSpec(StageSchedule.parse(f"L:{one.id}")) for one in matrix.cells}
    assert list(confirm(elsewhere, RunSettings(pairs=(job,), num_repeats=3), matrix, specs)) == []
    return matrix.run.pairs[0]


def test_what_does_not_hold_elsewhere_is_dropped_and_the_next_is_tried() -> None:
    matrix = results(*(cell(number) for number in range(1, 13)), cell(20, observed="degraded"))
    elsewhere = Elsewhere(holds=["1", "2", "3"])
    pair = confirmed(matrix, elsewhere)
    assert pair.headline is not None
    assert pair.headline.cell == "3"
    assert pair.headline.dropped == [str(number) for number in range(12, 3, -1)]
    (job,) = elsewhere.asked[0].pairs
    assert (job.first_prompt, job.num_prompts, job.seed) == (64, 48, 71), "neither prompts nor seeds chose anything"
    assert elsewhere.asked[0].is_at_once


def test_candidates_beyond_the_first_are_measured_only_when_none_of_these_holds() -> None:
    # No cell is on the front but the fastest, for they are all equally near to large-only.
    def cells() -> list[CellResult]:
        return [cell(number, psnr_db=30.0) for number in range(1, NUM_TRIED + 4)]

    elsewhere = Elsewhere(holds=["2"])
    pair = confirmed(results(*cells()), elsewhere)
    assert pair.headline is not None
    assert pair.headline.cell == "2"
    assert len(elsewhere.asked) == 2
    nobody = confirmed(results(*cells()), Elsewhere(holds=[]))
    assert nobody.headline is not None
    assert nobody.headline.cell is None
    assert len(nobody.headline.dropped) == NUM_TRIED + 3


def test_the_front_is_what_is_on_it_elsewhere() -> None:
    pair = confirmed(results(cell(1), cell(2), cell(3)), Elsewhere(holds=["1", "2", "3"], slower=["2"]))
    assert pair.front == ["3", "1"]


def test_a_run_that_goes_on_with_more_cells_chooses_anew() -> None:
    matrix = results(cell(1), cell(2))
    confirmed(matrix, Elsewhere(holds=["1", "2"]))
    matrix.cells.append(cell(3))
    elsewhere = Elsewhere(holds=["3"])
    pair = confirmed(matrix, elsewhere)
    assert pair.headline is not None
    assert pair.headline.cell == "3"
    assert matrix.cells[0].confirmation is not None
    assert pair.front == ["3", "2", "1"]


def test_a_screening_confirms_nothing() -> None:
    elsewhere = Elsewhere(holds=["1"])
    assert confirmed(results(cell(1), looks=[3]), elsewhere).headline is None
    assert not elsewhere.asked


def test_a_simulated_matrix_is_rarely_wrong() -> None:
    """Many fast cells just under the budget: without a confirmation the best of them is often the headline."""
    under = [TrueCell(f"under {n}", 19.9, 2.5, 0.8, 0.05, 2.0 + n / 100.0) for n in range(20)]
    spread = [
        TrueCell(f"{db} dB", db, 2.5, 0.5 + db / 60.0, 0.05, 3.0 - db / 25.0) for db in np.linspace(10.0, 35.0, 20)
    ]
    tally = simulate([*spread, *under], 25, SHAPES["normal"], 0, QualityBudget())
    assert tally.num_false_headlines <= 0.05 * tally.num_runs
    assert tally.num_false_without_confirmation > tally.num_false_headlines
    assert tally.num_wrong <= 0.05 * tally.num_cells
