"""Who runs the cells of a matrix: worker processes of this machine, or a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from flowblend_plugins.errors import UsageError

from ..orders import Batch, Message, RunSettings


class Executor(Protocol):
    """Measures batches of cells somewhere and gives what happens as it happens.

    A worker makes one ``flowblend_compat_matrix.worker.Worker(settings)``, which loads a pair when it first needs it
    and keeps it, and iterates over ``worker.measure(batch)``: the messages of a batch, ending when the batch is done.
    Whatever a cell raises is a result. A worker that is lost (crash, kill, time limit) is replaced; the cell named by
    its last ``Began`` is at fault and becomes a :func:`~..orders.lost_cell`, and ``batch.without(...)`` what was
    finished and lost goes to another worker. Every cell of every batch comes back exactly once, in any order.
    """

    def run(self, settings: RunSettings, batches: Sequence[Batch]) -> Iterator[Message]:
        """Run everything. Closing the iterator early stops the workers; finished cells have been given by then."""
        ...

    def describe(self) -> str:
        """In words, for the record: ``"2 local worker processes, 1 thread each"``."""
        ...


def make_executor(name: str, num_workers: int) -> Executor:
    """The executor of a name: ``"local"``.

    Args:
        name: which.
        num_workers: at most so many workers.

    Raises:
        UsageError: there is none of that name.
    """
    if name == "local":
        from .local import LocalExecutor

        return LocalExecutor(num_workers)
    raise UsageError(f"--executor {name!r}: there is no such executor. Known: local.")
