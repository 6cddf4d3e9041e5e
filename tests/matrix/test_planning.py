"""What is asked for in a file or by a word becomes stacks and cells; a run goes on only where nothing has changed."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flowblend_compat_matrix.measuring.jobs import PairJob, RunSettings, make_batches
from flowblend_compat_matrix.results.cells import plan_cells
from flowblend_compat_matrix.results.matrix_results import CellResult, Matrix, PairRecord, RunRecord
from flowblend_compat_matrix.running.folder import write_matrix
from flowblend_compat_matrix.running.planning import (
    all_stacks,
    check_depth,
    combinations,
    left_out,
    num_threads_each,
    take_turns,
)
from flowblend_compat_matrix.running.resume import resume, unfinished
from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, StageSchedule, hookimpl
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import adapters_by_name, make_plugin_manager


@dataclass(frozen=True, kw_only=True)
class SaysNothing(Adapter):
    name: ClassVar[str] = "says_nothing"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.FEATURE_CACHING)

    def attach(self, target: AttachTarget) -> Any:
        return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class WantsNone(SaysNothing):
    name: ClassVar[str] = "wants_none"
    suggested: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class WantsAnOption(SaysNothing):
    name: ClassVar[str] = "wants_an_option"
    how: str


class Unheard:
    @hookimpl
    def flowblend_register_adapters(self) -> list[type[Adapter]]:
        return [SaysNothing, WantsNone, WantsAnOption]


def test_combinations_are_of_different_adapters_at_their_first_setting() -> None:
    singles = [("a(x=1)",), ("a(x=2)",), ("b",), ("b", "c"), ("c(y=1)",)]
    assert combinations(singles, 1) == []
    assert combinations(singles, 2) == [("a(x=1)", "b"), ("a(x=1)", "c(y=1)"), ("b", "c(y=1)")]
    assert combinations(singles, 3)[3:] == [("a(x=1)", "b", "c(y=1)")]
    with pytest.raises(UsageError, match="fewer than two"):
        check_depth(2, [("a(x=1)",), ("a(x=2)",)])


def test_all_adapters_are_all_that_are_registered() -> None:
    manager = make_plugin_manager([Unheard()])
    named = {text.partition("(")[0] for text in all_stacks(manager)}
    assert named >= {name for name, adapter in adapters_by_name(manager).items() if adapter.suggested}
    # One that says nothing is tried as it is; one that says "nothing" is not, and neither is one that cannot be made.
    assert {"says_nothing"} == named & {"says_nothing", "wants_none", "wants_an_option"}
    assert named.isdisjoint(left_out(manager))
    assert named | set(left_out(manager)) == set(adapters_by_name(manager))


@pytest.mark.parametrize(
    ("num_workers", "is_tiny", "asked", "num_threads"),
    [(1, False, None, None), (1, True, None, 1), (2, False, None, 4), (16, False, None, 1), (2, True, "3", None)],
)
def test_threads_are_divided(num_workers: int, is_tiny: bool, asked: str | None, num_threads: int | None) -> None:
    assert num_threads_each(num_workers, 8, is_tiny, asked) == num_threads


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("steps = [", "cannot be read"),
        ("stepz = 5", "'stepz' is no option of `flowblend matrix run`. Did you mean steps?"),
        ("steps = [5, 6]", "steps takes one value"),
        ("resume = true", "'resume' is no option"),
        ('steps = "many"', "'--steps'"),
        ("depth = 2", "fewer than two are named"),
    ],
)
def test_a_wrong_file_is_refused_by_name(flowblend: Any, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "matrix.toml"
    path.write_text(content)
    result = flowblend("matrix", "run", "--config", path, "--out", tmp_path / "out")
    assert result.code == 2
    assert said in " ".join(result.err.split())
    assert not (tmp_path / "out").exists()


def test_a_flag_wins_over_the_file(flowblend: Any, tmp_path: Path) -> None:
    path = tmp_path / "matrix.toml"
    path.write_text('pair = ["no_such_pair"]\nschedule = "LSL"\n[budget]\nmin-psnr-db = 30.0\n')
    assert "'no_such_pair'" in flowblend("matrix", "run", "--config", path, "--out", tmp_path / "out").err
    assert "'another'" in flowblend("matrix", "run", "--config", path, "--pair", "another").err


ORDER = PairJob(name="tiny", preset=None, num_prompts=2, call={"steps": 4}, early=0.4, late=0.2)
SETTINGS = RunSettings(pairs=(ORDER,), num_repeats=3)
PLANNED = {("tiny", "LLL"), ("tiny", "LSL")}


def interrupted(**changes: Any) -> Matrix:
    values: dict[str, Any] = {
        "command": "flowblend matrix run",
        "pairs": [],
        "schedules": ["LLL", "LSL"],
        "stacks": [],
        "depth": 1,
        "num_repeats": 3,
        "budget": {"min_psnr_db": 20.0},
        "num_planned": 2,
        "executor": "1 local worker process",
        "is_sharing": True,
    }
    return Matrix(environment={"torch": "2.13", "date": "today"}, run=RunRecord(**(values | changes)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    earlier = interrupted()
    earlier.environment["date"] = "yesterday"
    earlier.cells = [CellResult(id="LLL", pair="tiny", schedule="LLL", adapters=[], observed="pass", reasons=["r"])]
    earlier.run.pairs = [
        PairRecord(
            name="tiny",
            pipeline="WanPipeline",
            makes="videos",
            prompts=["a", "b"],
            seeds=[0, 1],
            call={"steps": 4},
            early=0.4,
            late=0.2,
        )
    ]
    write_matrix(tmp_path, earlier)
    return tmp_path


def test_a_run_goes_on_where_it_stopped(folder: Path) -> None:
    batches = make_batches("tiny", plan_cells([StageSchedule.named(name) for name in ("LLL", "LSL")]))
    results, news = resume(folder, interrupted(), SETTINGS, PLANNED)
    assert news is None
    assert [cell.id for cell in results.cells] == ["LLL"]
    assert results.run.pairs[0].pipeline == "WanPipeline"
    assert [[cell.id for cell in batch.cells] for batch in unfinished(batches, results)] == [["LSL"]]


@pytest.mark.parametrize(
    ("num_workers", "num_threads", "shares", "turns"),
    [(1, 4, True, False), (2, 1, False, False), (2, 2, False, True), (3, 1, False, True), (2, 1, True, True)],
)
def test_workers_with_cores_of_their_own_time_when_they_like(
    num_workers: int, num_threads: int, shares: bool, turns: bool
) -> None:
    assert take_turns(num_workers, num_threads, 2, shares) is turns


def test_batches_hold_whole_stacks_in_their_order() -> None:
    cells = plan_cells([StageSchedule.named(name) for name in ("LLL", "LSL")], [("a",), ("b",), ("c",)])
    stacks = [[cell.stack for cell in batch.cells] for batch in make_batches("tiny", cells, 2)]
    assert stacks == [[(), (), ("a",), ("a",)], [("b",), ("b",), ("c",), ("c",)]]


def test_without_results_it_begins(tmp_path: Path) -> None:
    fresh = interrupted()
    assert resume(tmp_path, fresh, SETTINGS, PLANNED) == (fresh, None)


@pytest.mark.parametrize(
    ("run", "order", "planned", "said"),
    [
        ({"num_repeats": 5}, {}, {("tiny", "LLL")}, "num_repeats was 3 and is now 5"),
        ({"runs_refused": True}, {}, {("tiny", "LLL")}, "runs_refused was False and is now True"),
        ({}, {"seed": 7}, {("tiny", "LLL")}, "tiny: seed was 0 and is now 7"),
        ({}, {"call": {"steps": 8}}, {("tiny", "LLL")}, "tiny: call was"),
        ({}, {"num_prompts": 3}, {("tiny", "LLL")}, "tiny: number of videos was 2 and is now 3"),
        ({}, {}, {("tiny", "LSL")}, "1 finished cells are no longer asked for ('LLL' among them)"),
    ],
)
def test_what_has_changed_is_named(folder: Path, run: Any, order: Any, planned: Any, said: str) -> None:
    fresh = interrupted(**run)
    settings = dataclasses.replace(SETTINGS, pairs=(dataclasses.replace(ORDER, **order),))
    with pytest.raises(UsageError, match="--resume") as error:
        resume(folder, fresh, settings, planned)
    assert said in str(error.value)


@pytest.mark.parametrize(("name", "now"), [("torch", "2.14"), ("device", "another processor")])
def test_with_another_torch_or_machine_everything_is_measured_again(folder: Path, name: str, now: str) -> None:
    fresh = interrupted()
    fresh.environment[name] = now
    results, news = resume(folder, fresh, SETTINGS, PLANNED)
    assert results.cells == []
    assert news is not None
    assert name in news
    assert f"is now {now}" in news


def test_with_another_version_of_an_adapter_its_cells_are_measured_again(tmp_path: Path) -> None:
    def matrix(version: str, extra: str) -> Matrix:
        made = interrupted()
        made.environment |= {"adapters": {"ours": "ours 1", "theirs": f"theirs {version}"}, "packages": {"peft": extra}}
        return made

    earlier = matrix("1.0", "0.1")
    earlier.cells = [
        CellResult(id=" + ".join(["LSL", *stack]), pair="tiny", schedule="LSL", adapters=list(stack), observed="pass")
        for stack in ((), ("ours(x=1)",), ("theirs(y=2)",), ("ours(x=1)", "theirs(y=2)"))
    ]
    planned = {(cell.pair, cell.id) for cell in earlier.cells}
    write_matrix(tmp_path, earlier)
    results, news = resume(tmp_path, matrix("1.1", "0.1"), SETTINGS, planned)
    assert [cell.id for cell in results.cells] == ["LSL", "LSL + ours(x=1)"]
    assert news == ("2 of 4 finished cells are stale and measured again: theirs was theirs 1.0 and is now theirs 1.1.")
    # What adapters build on is as good as the adapters themselves.
    results, _ = resume(tmp_path, matrix("1.0", "0.2"), SETTINGS, planned)
    assert [cell.id for cell in results.cells] == ["LSL"]
