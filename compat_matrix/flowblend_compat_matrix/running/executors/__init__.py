"""Executors, which run the cells of a matrix: worker processes of this machine, or a cluster."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from flowblend_plugins.errors import UsageError

from ...measuring.jobs import Batch, Message, RunSettings


class Executor(Protocol):
    """Measures batches of cells somewhere and gives what happens as it happens.

    A worker makes one ``running.worker.Worker(settings)``, which loads a pair when it first needs it and keeps it,
    and iterates over ``worker.measure(batch)``: the messages of a batch, ending when the batch is done. Whatever a
    cell raises is a result. A worker that is lost (crash, kill, time limit) is replaced; the cell named by
    its last ``Began`` is at fault and becomes a :func:`~..orders.lost_cell`, and ``batch.without(...)`` what was
    finished and lost goes to another worker. Every cell of every batch comes back exactly once, in any order.

    Attributes:
        num_workers: at most so many work at the same time.
        cores_each: CPU cores that each has to itself; ``None`` where they share those of this machine.
    """

    num_workers: int
    cores_each: int | None

    def run(self, settings: RunSettings, batches: Sequence[Batch]) -> Generator[Message, None, None]:
        """Run everything, and give messages as they come.

        Closing the generator early stops the workers; finished cells have been given by then.
        """
        ...

    def close(self) -> None:
        """Let go of what it has joined; done by ``run`` when it ends, so for those who never come to run it."""
        ...

    def describe(self) -> str:
        """Describe it for the record: ``"2 local worker processes, 1 thread each"``."""
        ...


def make_executor(name: str, num_workers: int | None = None, ray_address: str | None = None) -> Executor:
    """The executor of a name: ``"local"`` or ``"ray"``.

    Args:
        name: which.
        num_workers: at most so many workers; ``None`` for one, or on a cluster as many as it has accelerators.
        ray_address: of an existing cluster, for ``"ray"``.

    Raises:
        UsageError: there is none of that name, or it has no use for the address.
        FlowBlendError: the cluster cannot be joined.
    """
    if name == "ray":
        from .ray_cluster import RayExecutor

        return RayExecutor(num_workers, ray_address)
    if ray_address is not None:
        raise UsageError(f"--ray-address {ray_address} is for --executor ray, and the executor is {name}.")
    if name == "local":
        from .local import LocalExecutor

        return LocalExecutor(num_workers or 1)
    raise UsageError(f"--executor {name!r}: there is no such executor. Known: local, ray.")
