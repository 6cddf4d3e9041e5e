"""The device that is measured: its clock and its peak memory, on CUDA, and on a CPU for a trial of everything."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass
class Machine:
    """One device and how long it may still be used.

    Attributes:
        device: ``cuda`` or ``cpu``.
        deadline: of ``time.monotonic()``, after which no measurement is begun.
    """

    device: torch.device
    deadline: float

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"

    def left_s(self) -> float:
        """Seconds until the deadline, negative after it."""
        return self.deadline - time.monotonic()

    def timed(self, function: Callable[[], T]) -> tuple[T, float]:
        """Call a function: its result, and its seconds until the device has finished."""
        self.wait()
        started = time.perf_counter()
        result = function()
        self.wait()
        return result, time.perf_counter() - started

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.has_gpu:
            torch.cuda.synchronize(self.device)

    def collect(self) -> None:
        """Give back memory that nothing refers to."""
        gc.collect()
        if self.has_gpu:
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], int | None]]:
        """Watch the peak of allocated bytes; what is given tells it, ``None`` on a CPU, whose allocator keeps none."""
        if self.has_gpu:
            self.collect()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield lambda: torch.cuda.max_memory_allocated(self.device) if self.has_gpu else None
