"""Worker processes on this machine, each of which may crash, hang or run out of memory over a cell without harm."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from flowblend_plugins.errors import FlowBlendError

from ...measuring.jobs import Batch, Message, RunSettings
from .batch_in_progress import BatchInProgress, Losses, take_batch

_POLL_S = 0.5
_GOING_TAKES_S = 5.0


class LocalExecutor:
    """Worker processes, started afresh (not forked), each with its own copy of the pairs.

    Args:
        num_workers: how many.
    """

    cores_each: int | None = None

    def __init__(self, num_workers: int = 1) -> None:
        self.num_workers = num_workers

    def close(self) -> None:
        """Nothing is held between runs."""

    def describe(self) -> str:
        return "1 local worker process" if self.num_workers == 1 else f"{self.num_workers} local worker processes"

    def run(self, settings: RunSettings, batches: Sequence[Batch]) -> Generator[Message, None, None]:
        """Run everything, as :class:`~flowblend_compat_matrix.running.executors.Executor` says.

        Raises:
            FlowBlendError: a pair cannot be opened, or its baselines cannot be run.
        """
        waiting = deque(batches)
        losses = Losses(waiting)
        workers = [_LocalWorker(settings, losses) for _ in range(min(self.num_workers, len(waiting)))]
        try:
            for worker in workers:
                worker.take_from(waiting)
            while any(worker.is_busy for worker in workers):
                busy = [worker for worker in workers if worker.is_busy]
                ready = wait([thing for worker in busy for thing in worker.waitables], _POLL_S)
                for worker in busy:
                    yield from worker.messages(any(thing in ready for thing in worker.waitables))
                for worker in workers:
                    if not worker.is_busy:
                        worker.take_from(waiting)
        finally:
            for worker in workers:
                worker.stop()


class _LocalWorker:
    """One worker process, and another one after it if it is lost."""

    def __init__(self, settings: RunSettings, losses: Losses) -> None:
        self._settings, self._losses = settings, losses
        self._process: Any = None
        self._progress: BatchInProgress | None = None
        self._pair: str | None = None

    @property
    def is_busy(self) -> bool:
        return self._progress is not None

    @property
    def waitables(self) -> tuple[Connection, int]:
        return self._pipe, self._process.sentinel

    def take_from(self, waiting: deque[Batch]) -> None:
        """Begin with the next batch, one of the pair that is loaded already if there is any."""
        if not waiting:
            return
        batch = take_batch(waiting, self._pair)
        if self._process is None:
            self._start()
        self._progress, self._pair = BatchInProgress(batch), batch.pair
        self._pipe.send(batch)

    def messages(self, has_news: bool) -> Iterator[Message]:
        """Messages of the process, and the result of its cell if it is lost."""
        progress = self._progress
        while has_news and progress is not None:
            try:
                if not self._pipe.poll():
                    break
                message = self._pipe.recv()
            except (EOFError, OSError):
                break
            if message is None:
                self._progress = None
                return
            if isinstance(message, str):
                raise FlowBlendError(message)
            progress.hear(message)
            yield message
        if progress is None:
            return
        limit = self._settings.cell_timeout_s
        if not self._process.is_alive() and not self._pipe_has_more():
            yield from self._lose(progress, *_cause_of_death(self._process.exitcode, self._num_oom_kills))
        elif limit is not None and progress.is_over(limit):
            yield from self._lose(progress, "hung", progress.explain_hanging(limit))

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is None:
            return
        is_busy = self.is_busy
        self._pipe.close()  # to an idle worker the word to go
        if not is_busy:
            self._process.join(_GOING_TAKES_S)
        if is_busy or self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = None

    def _pipe_has_more(self) -> bool:
        with contextlib.suppress(EOFError, OSError):
            return self._pipe.poll() and self._process.exitcode == 0
        return False

    def _lose(self, progress: BatchInProgress, failure: str, reason: str) -> Iterator[Message]:
        self.stop()
        self._progress = None
        yield from self._losses.recover(progress, failure, reason)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._settings), daemon=True)
        self._num_oom_kills = _num_oom_kills()
        # Ctrl-C is the parent's to answer; a child inherits that it ignores it, from its first moment on.
        in_main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
        try:
            self._process.start()
        finally:
            if in_main:
                signal.signal(signal.SIGINT, handler)
        theirs.close()


def _work(pipe: Connection, settings: RunSettings) -> None:
    """The worker process: batches in; messages out, ``None`` after the last of a batch, a text if it cannot go on."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output belongs to the parent's results
    try:
        from tqdm import tqdm

        from ..worker import Worker

        tqdm.set_lock(threading.RLock())  # its own would be a system-wide semaphore, which a lost worker leaves behind

        worker = Worker(settings)
        while True:
            for message in worker.measure(pipe.recv()):
                pipe.send(message)
            pipe.send(None)
    except FlowBlendError as error:
        pipe.send(str(error))
    except (EOFError, ConnectionError):  # the parent has gone
        return
    except Exception as error:  # of no cell: the parent says over which one the process was lost
        print(f"flowblend: a worker ended with {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _cause_of_death(exit_code: int | None, oom_kills_before: int) -> tuple[str, str]:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        if -exit_code == signal.SIGKILL and _num_oom_kills() > oom_kills_before:
            return "out_of_memory", "The system killed its process because the machine ran out of memory."
        return "crashed", f"Its process was ended by {name}."
    return "crashed", f"Its process ended with exit code {exit_code}."


def _num_oom_kills() -> int:
    """Count of kills for want of memory since Linux started; 0 where it does not tell."""
    with contextlib.suppress(OSError, StopIteration, IndexError, ValueError):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return 0
