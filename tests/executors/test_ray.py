"""Cells on a Ray cluster of two nodes on this machine, against the local executor; nodes and workers that are lost."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowblend_compat_matrix.measuring.jobs import Baselines, Began, FinishedCell, PairJob, RunSettings, make_batches
from flowblend_compat_matrix.results.cells import plan_cells
from flowblend_compat_matrix.results.matrix_results import CellResult
from flowblend_compat_matrix.results.verdicts import QualityBudget
from flowblend_compat_matrix.running.executors import make_executor
from flowblend_compat_matrix.running.executors.local import LocalExecutor
from flowblend_plugins import StageSchedule
from flowblend_plugins.errors import FlowBlendError, UsageError
from tests.processes import bounded_by_progress

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = bounded_by_progress

CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 5, "guidance_scale": 5.0}
LETHAL = "tests.matrix.lethal:Plugin"
SCHEDULES = [StageSchedule.named(name) for name in ("LLL", "LSL")]
# Ray takes nodes and workers for dead that are only slow, as on a busy machine; of killed ones it hears at once.
PATIENCE = {
    "gcs_server_port_wait_time_s": "3600",
    "health_check_timeout_ms": "600000",
    "worker_register_timeout_seconds": "3600",
}
MOMENT = ("latency", "speedup", "stacking", "seconds", "peak_memory_mb", "num_forwards_run", "num_forwards_timed")


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
    budget = QualityBudget(min_psnr_db=0.0, min_ssim=-1.0)
    values: dict[str, Any] = {"pairs": (order,), "num_repeats": 1, "budget": budget, "num_threads": 1}
    values |= {"timing_lock": f"flowblend-test-{os.getpid()}.lock"} | changes
    return RunSettings(**values)


def figures(result: CellResult) -> dict[str, Any]:
    """All that does not depend on the moment, nor on how cells were divided among workers."""
    kept = {name: value for name, value in dataclasses.asdict(result).items() if not name.startswith(MOMENT)}
    return kept | {"num_forwards_alone": result.num_forwards_alone - result.num_forwards_timed}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a CPU each; the second is there to be killed."""
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in PATIENCE.items():
            patch.setenv(f"RAY_{name}", value)
        # It is there, so it answers as soon as this machine lets it.
        patch.setattr("flowblend_compat_matrix.running.executors.ray_connection._CONNECT_LIMIT_S", 3600.0)
        made: Any = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        made.second = made.add_node(**node)
        made.wait_for_nodes(timeout=3600)
        yield made
        ray.shutdown()
        made.shutdown()


def test_a_cluster_that_loses_a_node_gives_what_the_local_executor_gives(saved_pair: Path, cluster: Any) -> None:
    stacks = [("dpmpp_2m",), ("flow_euler",), ("lethal(how='exits')",)]
    batches = make_batches("tiny", plan_cells(SCHEDULES, stacks))
    settings = settings_for(saved_pair, plugins=(LETHAL,))
    executor = make_executor("ray", None, cluster.address)
    assert executor.describe() == f"up to 2 workers on Ray, the cluster at {cluster.address}, on CPUs"
    found: dict[str, FinishedCell] = {}
    num_controls, is_killed = 0, False
    for message in executor.run(settings, batches):
        num_controls += isinstance(message, Baselines)
        if isinstance(message, Began) and num_controls == 2 and message.cell and not is_killed:
            is_killed = True
            cluster.remove_node(cluster.second, allow_graceful=False)  # both nodes are at work on cells
        if isinstance(message, FinishedCell):
            assert message.result.id not in found, "every cell exactly once"
            found[message.result.id] = message
    assert is_killed
    assert not ray.is_initialized()
    local = {one.result.id: one for one in LocalExecutor(1).run(settings, batches) if isinstance(one, FinishedCell)}
    assert found.keys() == local.keys() == {cell.id for batch in batches for cell in batch.cells}
    for name, outcome in local.items():
        if "lethal" in name:
            assert outcome.result.observed == found[name].result.observed == "broken"
            assert outcome.result.failure == found[name].result.failure == "crashed"
            assert found[name].result.reasons == ["Its worker process ended unexpectedly. So it went 2 times."]
        else:
            assert figures(found[name].result) == figures(outcome.result)
            assert found[name].files == outcome.files, "every frame of every video"


@pytest.mark.usefixtures("only_cells_made_to_hang_are_timed")
def test_what_hangs_is_given_up_at_once_and_what_it_leaves_goes_on(saved_pair: Path, cluster: Any) -> None:
    cells = plan_cells(SCHEDULES[1:], [("lethal(how='hangs')",), ("lethal(how='is good')",)])
    settings = settings_for(saved_pair, plugins=(LETHAL,), cell_timeout_s=4.0)
    messages = list(make_executor("ray", 1, cluster.address).run(settings, make_batches("tiny", cells)))
    found = {message.result.id: message.result for message in messages if isinstance(message, FinishedCell)}
    assert {name.partition("how=")[2][:6]: (one.observed, one.failure) for name, one in found.items()} == {
        "": ("pass", None),
        "'hangs": ("broken", "hung"),
        "'is go": ("inert", None),
    }
    assert "4 s" in next(one.reasons[0] for one in found.values() if one.failure)
    assert sum(isinstance(message, Baselines) for message in messages) == 2


def test_a_pair_that_cannot_be_opened_ends_the_run(saved_pair: Path, cluster: Any) -> None:
    batches = make_batches("tiny", plan_cells(SCHEDULES, []))
    with pytest.raises(FlowBlendError, match="there is no folder or file"):
        list(make_executor("ray", 1, cluster.address).run(settings_for(saved_pair / "nowhere"), batches))
    assert not ray.is_initialized()


def test_addresses_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowblend_compat_matrix.running.executors.ray_connection._CONNECT_LIMIT_S", 3.0)
    with pytest.raises(FlowBlendError, match=r"--ray-address 127\.0\.0\.1:1: no Ray cluster answered within 3 s"):
        make_executor("ray", 1, "127.0.0.1:1")
    monkeypatch.setattr("flowblend_compat_matrix.running.executors.ray_connection._CONNECT_LIMIT_S", 3600.0)
    with pytest.raises(FlowBlendError, match="Invalid address format: nonsense"):
        make_executor("ray", 1, "nonsense")
    with pytest.raises(UsageError, match=r"Ray Client address.*host:port"):
        make_executor("ray", 1, "ray://127.0.0.1:10001")
    with pytest.raises(UsageError, match="is for --executor ray"):
        make_executor("local", 1, "127.0.0.1:6379")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "flowblend-plugins\[ray\]"'):
        make_executor("ray", 1)
