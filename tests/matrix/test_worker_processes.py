"""Cells in processes of their own: one that is lost costs itself alone. Sharing changes no figure."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest

from flowblend_compat_matrix.measuring.jobs import (
    Baselines,
    Batch,
    Began,
    FinishedCell,
    PairJob,
    RunSettings,
    make_batches,
)
from flowblend_compat_matrix.results.cells import CellSpec, plan_cells
from flowblend_compat_matrix.results.matrix_results import CellResult
from flowblend_compat_matrix.results.verdicts import QualityBudget
from flowblend_compat_matrix.running.executors import make_executor
from flowblend_compat_matrix.running.executors.local import LocalExecutor, _cause_of_death
from flowblend_compat_matrix.running.worker import Worker
from flowblend_plugins import StageSchedule
from flowblend_plugins.errors import FlowBlendError, UsageError

CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 5, "guidance_scale": 5.0}
ANYTHING_GOES = QualityBudget(min_psnr_db=0.0, min_ssim=-1.0)
LETHAL = "tests.matrix.lethal:Plugin"


def settings_for(pair: Path, **changes: Any) -> RunSettings:
    order = PairJob(
        name="tiny",
        preset=None,
        large=str(pair / "large"),
        small=str(pair / "small"),
        prompts=("a red circle", "a circle"),
        call=CALL,
        asked=frozenset({"num_inference_steps"}),
        early=0.4,
        late=0.2,
    )
    values: dict[str, Any] = {"pairs": (order,), "num_repeats": 1, "budget": ANYTHING_GOES, "num_threads": 1}
    return RunSettings(**(values | changes))


def schedules(*names: str) -> list[StageSchedule]:
    return [StageSchedule.named(name) for name in names]


@pytest.mark.usefixtures("only_cells_made_to_hang_are_timed")
def test_what_is_lost_costs_itself_alone(saved_pair: Path) -> None:
    ways = ("exits", "segfaults", "hangs", "eats memory", "is good")
    cells = plan_cells(schedules("LSL"), [(f"lethal(how={how!r})",) for how in ways])
    settings = settings_for(saved_pair, plugins=(LETHAL,), cell_timeout_s=4.0)
    messages = list(LocalExecutor(1).run(settings, make_batches("tiny", cells)))
    outcomes = [message.result for message in messages if isinstance(message, FinishedCell)]
    assert sorted(result.id for result in outcomes) == sorted(cell.id for cell in cells), "every cell exactly once"
    found = {result.adapters[0][11:-1] if result.adapters else "": result for result in outcomes}
    assert found[""].observed == "pass"
    assert found["'is good'"].observed == "inert"
    failures = {how: (found[repr(how)].observed, found[repr(how)].failure) for how in ways[:4]}
    assert failures == {
        "exits": ("broken", "crashed"),
        "segfaults": ("broken", "crashed"),
        "hangs": ("broken", "hung"),
        "eats memory": ("broken", "out_of_memory"),
    }
    assert found["'exits'"].reasons == ["Its process ended with exit code 3."]
    assert found["'segfaults'"].reasons == ["Its process was ended by SIGSEGV."]
    assert "4 s" in found["'hangs'"].reasons[0]
    assert "ran out of memory" in found["'eats memory'"].reasons[0]
    assert sum(isinstance(message, Baselines) for message in messages) == 4, "each new process loads the pair"


def figures(result: CellResult) -> dict[str, Any]:
    """All that does not depend on the moment."""
    moment = ("latency", "speedup", "stacking", "seconds", "memory", "num_forwards_run", "num_forwards_timed")
    kept = {k: v for k, v in dataclasses.asdict(result).items() if not k.startswith(moment) and "peak" not in k}
    return kept | {"num_forwards_alone": result.num_forwards_alone - result.num_forwards_timed}


def measured_here(settings: RunSettings, *batches: Batch) -> tuple[dict[str, FinishedCell], int]:
    worker = Worker(settings)
    found, num_forwards = {}, 0
    for batch in batches:
        for message in worker.measure(batch):
            if isinstance(message, FinishedCell):
                found[message.result.id] = message
                num_forwards += message.result.num_forwards_run
            elif isinstance(message, Baselines):
                num_forwards += message.num_forwards
            else:
                assert isinstance(message, Began)
    return found, num_forwards


def test_sharing_changes_no_figure_and_saves_most_of_the_work(saved_pair: Path) -> None:
    settings = settings_for(saved_pair)
    five = schedules("LLL", "LSL", "LSS", "SLL", "SSS")
    batches = make_batches("tiny", plan_cells(five, [("first_block_cache(threshold=0.5, denoisers='L')",)]))
    shared, num_shared = measured_here(settings, *batches)
    whole, num_whole = measured_here(dataclasses.replace(settings, is_sharing=False), *batches)
    assert shared.keys() == whole.keys()
    for name, outcome in shared.items():
        assert figures(outcome.result) == figures(whole[name].result)
        assert outcome.files == whole[name].files, "every frame of every video"
    # What the one says it would have taken alone is what the other really took: its cells, but for their timing.
    said = sum(outcome.result.num_forwards_alone for outcome in shared.values())
    baselines = num_whole - sum(outcome.result.num_forwards_run for outcome in whole.values())
    timed = [sum(one.result.num_forwards_timed for one in run.values()) for run in (shared, whole)]
    assert said - timed[0] == num_whole - baselines - timed[1]
    assert num_whole > 1.5 * num_shared


def test_a_batch_in_pieces_gives_the_same(saved_pair: Path) -> None:
    settings = settings_for(saved_pair)
    batch = Batch("tiny", tuple(CellSpec(schedule) for schedule in schedules("LLL", "LSL")))
    rest = batch.without({"LLL"})
    assert rest is not None
    assert rest.without({"LSL"}) is None
    together, _ = measured_here(settings, batch)
    alone, _ = measured_here(settings, rest)
    assert figures(alone["LSL"].result) == figures(together["LSL"].result)


def test_stacks_that_are_measured_together_are_as_each_alone(saved_pair: Path) -> None:
    settings = settings_for(saved_pair)
    stacks = [(), ("first_block_cache(threshold=0.5, denoisers='L')",), ("dpmpp_2m",)]
    cells = plan_cells(schedules("LLL", "LSL"), stacks)
    together, num_together = measured_here(settings, *make_batches("tiny", cells, 3))
    alone, num_alone = measured_here(settings, *make_batches("tiny", cells))
    assert len(together) == 6
    for name, outcome in alone.items():
        assert figures(outcome.result) == figures(together[name].result)
        assert outcome.files == together[name].files
        assert outcome.result.num_timed == together[name].result.num_timed
    assert num_together < num_alone, "baselines are timed once for all of them"


def test_a_pair_that_cannot_be_opened_ends_the_run(saved_pair: Path) -> None:
    settings = settings_for(saved_pair / "nowhere")
    with pytest.raises(FlowBlendError, match="there is no folder or file"):
        list(LocalExecutor(1).run(settings, [Batch("tiny", (CellSpec(StageSchedule.named("LSL")),))]))


def test_causes_of_death() -> None:
    assert _cause_of_death(-signal.SIGKILL, 10**9) == ("crashed", "Its process was ended by SIGKILL.")
    assert _cause_of_death(-signal.SIGKILL, -1)[0] == "out_of_memory"
    assert _cause_of_death(7, 0) == ("crashed", "Its process ended with exit code 7.")


def test_executors_by_name() -> None:
    assert make_executor("local", 2).describe() == "2 local worker processes"
    with pytest.raises(UsageError, match="no such executor"):
        make_executor("abacus", 1)


def test_what_is_declared_incompatible_is_run_where_that_is_asked(saved_pair: Path) -> None:
    batches = make_batches("tiny", [CellSpec(StageSchedule.named("LSL"), ("flow_euler", "unipc"))])
    for asked, observed in ((False, {"refused"}), (True, {"pass", "degraded", "inert", "broken"})):
        found, _ = measured_here(settings_for(saved_pair, runs_refused=asked), *batches)
        (outcome,) = found.values()
        assert outcome.result.declared == "refused"
        assert outcome.result.observed in observed
