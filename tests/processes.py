"""Waiting for other processes as long as they work, however slow a busy machine makes them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import psutil
import pytest

STANDSTILL_S = 120.0
"""Without a tick of processor time for so long a process hangs: even a crowded machine gives everyone some."""

# pytest's own limit is in seconds of the clock. Here it is the last resort, against one that works for ever.
bounded_by_progress = pytest.mark.timeout(3600)


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Return when the condition holds.

    Raises:
        AssertionError: the process has ended before, or it and its children have come to a standstill.
    """
    progress = _Progress(process)
    while not condition():
        assert process.poll() is None, f"it ended first, with exit code {process.returncode}: {process.communicate()}"
        progress.check()
        time.sleep(0.1)


def output_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Standard output and standard error of a process, once it has ended.

    Raises:
        AssertionError: it and its children have come to a standstill.
    """
    progress = _Progress(process)
    while True:
        try:
            return process.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:  # what it has said by now is kept
            progress.check()


def seconds_worked(process: subprocess.Popen[str]) -> float:
    """Processor time of the process and its living children, in seconds; 0 once it is gone."""
    seconds = 0.0
    try:
        root = psutil.Process(process.pid)
        for one in (root, *root.children(recursive=True)):
            used = one.cpu_times()
            seconds += used.user + used.system
    except psutil.NoSuchProcess:
        pass
    return seconds


class _Progress:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._worked, self._since = seconds_worked(process), time.monotonic()

    def check(self) -> None:
        worked = seconds_worked(self._process)
        if worked != self._worked:  # less, where a child has ended
            self._worked, self._since = worked, time.monotonic()
        if time.monotonic() - self._since > STANDSTILL_S:
            self._process.kill()
            raise AssertionError(f"it has not worked for {STANDSTILL_S:g} s: it hangs")
