"""Workers on a Ray cluster: one accelerator each, pairs loaded once, and no cell lost with a machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_plugins.errors import FlowBlendError

from ...measuring.jobs import Baselines, Batch, Message, PairJob, RunSettings
from .batch_in_progress import BatchInProgress, Losses, take_batch
from .ray_connection import RayConnection

if TYPE_CHECKING:
    from ..worker import Worker

_POLL_S = 0.5
_FETCH_LIMIT_S = 120.0
_START_LIMIT_S = 600.0
_MAX_LOSSES = 2
"""A worker may be lost because its machine was; two workers over the same cell are the cell's doing."""


class RayExecutor:
    """Actors of a Ray cluster.

    Args:
        num_workers: how many; ``None`` for one on each GPU of the cluster, or on each CPU where it has no GPU.
        address: see :class:`~.ray_connection.RayConnection`.

    Raises:
        UsageError, FlowBlendError: the cluster cannot be joined, or has nothing to work with.
    """

    def __init__(self, num_workers: int | None = None, address: str | None = None) -> None:
        self._connection = RayConnection(address)
        self._ray = self._connection.ray
        threads = os.environ.get("OMP_NUM_THREADS", "")
        self.cores_each: int | None = int(threads) if threads.isdecimal() and int(threads) else 1
        num_gpus = self._connection.num_gpus()
        room = num_gpus or self._connection.num_cpus() // self.cores_each
        if not room:
            where = self._connection.where
            self._connection.close()
            raise FlowBlendError(
                f"--executor ray: {where} has no GPU and fewer than {self.cores_each} CPUs. Start its nodes with "
                "--num-gpus or --num-cpus."
            )
        self.num_workers = num_workers or room
        self._resources = {"num_gpus": 1} if num_gpus else {"num_cpus": self.cores_each}

    def describe(self) -> str:
        workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        kinds = "/".join(self._connection.accelerators())
        each = f"one {kinds or 'GPU'} each" if "num_gpus" in self._resources else "on CPUs"
        return f"up to {workers} on Ray, {self._connection.where}, {each}"

    def close(self) -> None:
        """Leave the cluster, which stops one that was started here."""
        self._connection.close()

    def run(self, settings: RunSettings, batches: Sequence[Batch]) -> Generator[Message, None, None]:
        """Run everything, as :class:`~flowblend_compat_matrix.running.executors.Executor` says.

        Leaves the cluster when it is done.

        Raises:
            FlowBlendError: a pair cannot be opened, workers do not start or have other versions than this machine.
        """
        waiting = deque(batches)
        settings = dataclasses.replace(settings, pairs=tuple(_anywhere(job) for job in settings.pairs))
        workers = [self._start(settings) for _ in range(min(self.num_workers, len(waiting)))]
        losses, failed_starts = Losses(waiting), 0
        last_news = time.monotonic()
        with contextlib.ExitStack() as exits:
            exits.callback(self.close)
            exits.callback(lambda: [worker.stop() for worker in workers])
            # Ray prints what it hears of lost nodes on standard output, which belongs to the results.
            exits.enter_context(contextlib.redirect_stdout(sys.stderr))
            while waiting or any(worker.progress for worker in workers):
                for worker in workers:
                    if worker.is_ready and worker.progress is None and waiting:
                        worker.measure(take_batch(waiting, worker.pair))
                pending = [worker.pending for worker in workers if worker.pending is not None]
                ready = self._ray.wait(pending, num_returns=1, timeout=_POLL_S)[0]
                for worker in tuple(workers):
                    try:
                        if worker.pending in ready:
                            last_news = time.monotonic()
                            message = worker.hear()
                            if isinstance(message, Baselines):
                                losses.forget_loading(message.record.name)
                            if message is not None:
                                yield message
                        limit = settings.cell_timeout_s
                        if limit is None or worker.progress is None or not worker.progress.is_over(limit):
                            continue
                        lost, bound = _Lost("hung", worker.progress.explain_hanging(limit)), 1
                    except _Lost as error:
                        lost, bound = error, _MAX_LOSSES
                    progress = worker.progress
                    worker.stop()
                    workers.remove(worker)
                    if progress is not None:
                        yield from losses.recover(progress, lost.failure, lost.reason, bound)
                    else:
                        failed_starts += 1
                        if failed_starts > _MAX_LOSSES * self.num_workers:
                            raise FlowBlendError(f"--executor ray: workers do not start. {lost.reason}")
                    if waiting:
                        workers.append(self._start(settings))
                if not any(worker.is_ready for worker in workers) and time.monotonic() - last_news > _START_LIMIT_S:
                    raise FlowBlendError(
                        f"--executor ray: no worker could start for {_START_LIMIT_S:g} s, for want of room on "
                        f"{self._connection.where}. `ray status` shows what takes it."
                    )

    def _start(self, settings: RunSettings) -> _RemoteWorker:
        remote = self._ray.remote(RayWorker).options(scheduling_strategy="SPREAD", max_restarts=0, **self._resources)
        return _RemoteWorker(self._ray, remote.remote(settings))


class RayWorker:
    """Contents of an actor: a worker that is made when it is first needed.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._worker: Worker | None = None

    def versions(self) -> dict[str, str]:
        """Versions of the packages that figures depend on."""
        return _versions()

    def measure(self, batch: Batch) -> Iterator[Message | str]:
        """The messages of a batch; a text if the run cannot go on."""
        try:
            if self._worker is None:
                from tqdm import tqdm

                from ..worker import Worker

                tqdm.set_lock(threading.RLock())  # see the local executor
                self._worker = Worker(self._settings)
            yield from self._worker.measure(batch)
        except FlowBlendError as error:
            yield str(error)


class _Lost(Exception):
    """A worker is no more."""

    def __init__(self, failure: str, reason: str) -> None:
        super().__init__(reason)
        self.failure, self.reason = failure, reason


class _RemoteWorker:
    """One actor as the driver sees it.

    Attributes:
        is_ready: it has started, with the right versions.
        progress: the batch it has.
        pair: the one it has loaded last.
        pending: what Ray will make ready next.
    """

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self._actor = actor
        self.is_ready = False
        self.progress: BatchInProgress | None = None
        self.pair: str | None = None
        self.pending: Any = actor.versions.remote()

    def measure(self, batch: Batch) -> None:
        """Begin to measure a batch."""
        self.progress, self.pair = BatchInProgress(batch), batch.pair
        self.pending = self._actor.measure.options(num_returns="streaming").remote(batch)

    def hear(self) -> Message | None:
        """Take what was made ready: a message, or ``None`` when it has started or is done with its batch.

        Raises:
            _Lost: the actor is no more, or what it said went with its machine.
            FlowBlendError: it says that the run cannot go on.
        """
        try:
            if self.progress is None:
                self._check(self._ray.get(self.pending, timeout=_FETCH_LIMIT_S))
                self.is_ready, self.pending = True, None
                return None
            message = self._ray.get(next(self.pending), timeout=_FETCH_LIMIT_S)
        except StopIteration:
            self.progress = self.pending = None
            return None
        except self._ray.exceptions.RayError as error:
            raise _Lost(*_cause_of_loss(error)) from error
        if isinstance(message, str):
            raise FlowBlendError(message)
        self.progress.hear(message)
        return message

    def stop(self) -> None:
        """End the actor, whatever it is doing."""
        self._ray.kill(self._actor, no_restart=True)
        self.progress = self.pending = None

    def _check(self, theirs: dict[str, str]) -> None:
        others = [
            f"{name} {theirs.get(name, 'missing')} instead of {mine}"
            for name, mine in _versions().items()
            if theirs.get(name) != mine
        ]
        if others:
            raise FlowBlendError(
                f"--executor ray: a worker has {', '.join(others)}, so its figures would not be those of this machine. "
                "Install the same versions on every node."
            )


def _cause_of_loss(error: Exception) -> tuple[str, str]:
    """Failure and one sentence, from the long text of Ray's error."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError" or "NODE_OUT_OF_MEMORY" in text:
        return "out_of_memory", "Ray ended its worker because the machine ran out of memory."
    if "node has died" in text or "node is dead" in text or "unavailable" in text:
        return "crashed", "Its worker's machine was lost."
    if "worker process has died" in text:
        return "crashed", "Its worker process ended unexpectedly."
    return "crashed", f"Its worker was lost: {str(error).strip().splitlines()[-1].rstrip('.')}."


def _anywhere(job: PairJob) -> PairJob:
    """The job of a pair with its folders named in full, for workers have working directories of their own."""
    texts = {side: getattr(job, side) for side in ("large", "small")}
    found = {side: str(Path(text).resolve()) for side, text in texts.items() if text and Path(text).exists()}
    return dataclasses.replace(job, **found)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from ...results.environment import ALWAYS_THERE, USED_BY_ADAPTERS

    found = {"Python": platform.python_version()}
    for name in (*ALWAYS_THERE, *USED_BY_ADAPTERS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
