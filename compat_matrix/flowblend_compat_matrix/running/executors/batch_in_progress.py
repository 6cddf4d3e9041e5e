"""Progress of a worker's batch, and recovery when the worker dies."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator

from flowblend_plugins.errors import FlowBlendError

from ...measuring.jobs import Batch, Began, FinishedCell, Message, lost_cell
from ...results.cells import CellSpec


class BatchInProgress:
    """A batch that a worker has been given.

    Attributes:
        batch: what was given.
        now: what the worker has last begun.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._finished = set[str]()
        self.hear(Began(batch.pair, None, "starting"))

    def hear(self, message: Message) -> None:
        """Take note of what the worker says."""
        if isinstance(message, Began):
            self.now, self._since = message, time.monotonic()
        elif isinstance(message, FinishedCell):
            self._finished.add(message.result.id)

    def is_over(self, limit_s: float | None) -> bool:
        """Whether a part of a cell takes longer than the limit; loading a pair takes as long as it takes."""
        if limit_s is None or self.now.cell is None or self.now.is_waiting:
            return False
        return time.monotonic() - self._since > limit_s

    def explain_hanging(self, limit_s: float) -> str:
        """One sentence for the cell that is over the limit."""
        return f"It took longer than the limit of {limit_s:g} s ({self.now.what})."

    def cell_at_fault(self) -> CellSpec | None:
        """The cell over which the worker was lost; ``None`` if every cell is finished."""
        unfinished = [cell for cell in self.batch.cells if cell.id not in self._finished]
        # Lost after a cell and before the next one began: the next one it would have been.
        return next((cell for cell in unfinished if cell.id == self.now.cell), unfinished[0] if unfinished else None)

    def left(self, without: CellSpec | None = None) -> Batch | None:
        """Cells that are not finished, except for one."""
        return self.batch.without({*self._finished, *([without.id] if without else [])})


def take_batch(waiting: deque[Batch], pair: str | None) -> Batch:
    """The next batch, one of the pair that the worker has loaded already if there is any."""
    batch = next((one for one in waiting if one.pair == pair), waiting[0])
    waiting.remove(batch)
    return batch


class Losses:
    """Recovery from lost workers: their cells go back to those that wait, except for one that keeps costing workers.

    Args:
        waiting: batches that no worker has; what a lost one had is put in front.
    """

    def __init__(self, waiting: deque[Batch]) -> None:
        self._waiting = waiting
        self._counts = Counter[tuple[str, str | None]]()

    def forget_loading(self, pair: str) -> None:
        """A pair has been loaded after all, so earlier losses over it were the machine's doing."""
        del self._counts[pair, None]

    def recover(self, batch: BatchInProgress, failure: str, reason: str, most: int = 1) -> Iterator[Message]:
        """Put back what a lost worker had; the cell that has cost ``most`` workers is given up.

        Raises:
            FlowBlendError: the pair costs them, before any cell.
        """
        pair, cell = batch.batch.pair, batch.cell_at_fault()
        is_loading = batch.now.cell is None
        if cell is None:  # it fell over its own end
            return
        key = pair, None if is_loading else cell.id
        self._counts[key] += 1
        times = self._counts[key]
        if is_loading:
            if times >= most:
                workers = "a worker was" if times == 1 else f"{times} workers were"
                raise FlowBlendError(f"pair {pair}: {workers} lost over {batch.now.what}, before any cell. {reason}")
            self._waiting.appendleft(batch.batch)
            return
        if rest := batch.left(without=cell):
            self._waiting.appendleft(rest)
        if times < most:
            self._waiting.appendleft(Batch(pair, (cell,)))  # alone, so that no other cell suffers if it was at fault
        else:
            yield lost_cell(pair, cell, failure, reason + (f" So it went {times} times." if times > 1 else ""))
