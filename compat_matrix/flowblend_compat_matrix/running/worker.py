"""Worker: pairs that are loaded once in a process, and the cells of a batch measured on them."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import make_plugin_manager, metrics_by_name, pairs_by_name
from flowblend_plugins.schedule import Stage, StageSchedule

from ..measuring.bench import Bench, Videos
from ..measuring.jobs import Baselines, Batch, Began, FinishedCell, Message, PairJob, RunSettings
from ..measuring.loading import PairChoice, pair_loader
from ..measuring.prompts import PromptSet, own_prompts
from ..measuring.runner import MatrixRunner, Measured
from ..results.matrix_results import PairRecord
from .folder import FRAMES_PER_SECOND, encode_videos


class Worker:
    """Measures batches in this process; see :class:`~.executors.Executor` for who calls it.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._jobs = {job.name: job for job in settings.pairs}
        self._plugins = tuple(_plugin(name) for name in settings.plugins)
        self._open: dict[str, _OpenPair] = {}
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)

    def measure(self, batch: Batch) -> Iterator[Message]:
        """The messages of a batch: what begins, and every cell as it is finished."""
        pair = self._open.get(batch.pair)
        if pair is None:
            yield Began(batch.pair, None, "the large and the small denoiser alone")
            started = time.perf_counter()
            pair = self._open[batch.pair] = _OpenPair(self._jobs[batch.pair], self._settings, self._plugins)
            yield Baselines(*pair.describe(), pair.baseline.num_forwards, time.perf_counter() - started)
        for found in pair.runner.measure_together(batch.cells, pair.baseline):
            if isinstance(found, Began):
                yield found
            else:
                yield pair.finish(found)


class _OpenPair:
    """A pair that is loaded, with its baselines run."""

    def __init__(self, job: PairJob, settings: RunSettings, plugins: tuple[object, ...]) -> None:
        manager = make_plugin_manager(plugins)
        preset = pairs_by_name(manager)[job.preset] if job.preset is not None else None

        if job.prompts is None:
            prompts = own_prompts(preset, job.num_prompts, job.num_seeds, job.first_prompt)
        else:
            prompts = PromptSet(job.prompts * job.num_seeds)
        self._bench = Bench(
            load=pair_loader(manager, PairChoice(job.preset or "", job.large, job.small, job.placement)),
            prompts=prompts,
            call=job.arguments(),
            seed=job.seed,
            asked=job.asked,
            runs_refused=settings.runs_refused,
            plugins=plugins,
        )
        self._settings = settings
        self.runner = MatrixRunner(
            self._bench,
            job.name,
            metrics_by_name(manager),
            settings.num_repeats,
            settings.budget,
            settings.is_sharing,
            settings.is_at_once,
            lambda: timing_alone(settings.timing_lock),
        )
        self.baseline = self.runner.measure_baseline()
        self._job = job
        if settings.memory_limit_mb is not None:
            _limit_memory(settings.memory_limit_mb)

    def finish(self, measured: Measured) -> FinishedCell:
        """A finished cell with its files; the first one brings the record of the pair along."""
        result, files = measured.result, {}
        if measured.videos is not None:
            result.videos, files = self._encode(result.id, result.pair, measured.videos)
        return FinishedCell(result, files)

    def _encode(self, what: str, pair: str, videos: Videos) -> tuple[list[str], dict[str, bytes]]:
        num_shown, title = self._settings.num_shown, f"{pair} {what}"
        # Of so many cells that one prompt is shown, tiny videos stay small too, so that one report can hold them all.
        min_side = 64 if num_shown == 1 else 256
        files = encode_videos(videos[:num_shown], title, self._bench.makes_stills, min_side)
        return list(files), files

    def describe(self) -> tuple[PairRecord, dict[str, bytes]]:
        """The record of the pair, and its baselines' videos."""
        job, baseline, prompts = self._job, self.baseline, self._bench.prompts
        num_steps = len({found.step_index for found in baseline.divergences})
        stages = [one.stage for one in StageSchedule.named("LSL", job.early, job.late).assignments(num_steps)]
        record = PairRecord(
            name=job.name,
            pipeline=type(self._bench.pipe).__name__,
            makes="stills" if self._bench.makes_stills else "videos",
            prompts=list(prompts.texts),
            seeds=[job.seed + number for number in range(len(prompts.texts))],
            call=dict(job.call),
            early=job.early,
            late=job.late,
            boundary_steps=[
                next((step for step, stage in enumerate(stages) if stage in later), num_steps)
                for later in ({Stage.INTERMEDIATE, Stage.LATE}, {Stage.LATE})
            ],
            judge=prompts.judge.description if prompts.judge else None,
            fps=None if self._bench.makes_stills else FRAMES_PER_SECOND,
            divergence=[found._asdict() for found in baseline.divergences],
            large_only=baseline.large,
            small_only=baseline.small,
            spreads={name: spread.std for name, spread in baseline.usual.items()},
        )
        record.large_only.videos, large = self._encode("large-only", job.name, baseline.videos[0])
        record.small_only.videos, small = self._encode("small-only", job.name, baseline.small_videos)
        return record, {**large, **small}


@contextlib.contextmanager
def timing_alone(name: str | None) -> Iterator[None]:
    """While this is held, no other worker of the run on this machine times anything.

    The lock goes with the process that holds it, however it ends. ``None`` and systems without such locks hold nothing.
    """
    if name is None or sys.platform == "win32":
        yield
        return
    import fcntl

    with (Path(tempfile.gettempdir()) / name).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _limit_memory(megabytes: int) -> None:
    """Let allocations fail beyond so much more address space than is in use now."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # not Linux
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _plugin(name: str) -> object:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(
            f'plugin {name!r}: expected "module:Class" that can be imported and called: {error}'
        ) from error
