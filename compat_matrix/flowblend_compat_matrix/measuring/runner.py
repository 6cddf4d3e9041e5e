"""Measure the cells of a matrix, each beside its baselines, in one process.

The cells of a few stacks are measured together, in three rounds of work: their videos, for which those of one stack
share the steps that their schedules have in common, and one whole generation after them; rounds of timed generations,
with one set of baselines for all; and the judgement. A generation that is timed is always run whole.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from flowblend_plugins import Blend
from flowblend_plugins.contract.adapter import arguments_set_by
from flowblend_plugins.contract.stack import judge_adapters, judge_call, setting_of
from flowblend_plugins.contract.traits import Composition, Verdict
from flowblend_plugins.hookspecs import Metric
from flowblend_plugins.manager import adapters_by_name, make_adapters, make_plugin_manager
from flowblend_plugins.pipelines.components import denoiser_slot
from flowblend_plugins.trace.generation import CallRecord

from ..results.cells import CellSpec
from ..results.intervals import LOOKS, NUM_PILOT_PROMPTS, looks_up_to
from ..results.matrix_results import CellResult
from ..results.verdicts import Observed, QualityBudget
from .audit import audit
from .baselines import SMALL_ALONE, baselines_of, num_switches, round_of_timing
from .bench import Bench, GeneratedVideos, Videos, forget_peak_memory, peak_memory
from .cell_figures import compare_cell, judge_fidelity
from .cell_in_progress import CellInProgress
from .denoisers_alone import PairBaselines, measure_baseline, with_pilot
from .jobs import Began
from .measurements import Times, count_flops, describe_generation


@dataclass
class Measured:
    """A cell's result, and its videos to be written."""

    result: CellResult
    videos: Videos | None = None


class MatrixRunner:
    """Measures cells on one bench.

    Args:
        bench: the loaded pair and its call.
        pair_name: as results name it.
        metrics: name to function of (video, large-only's video).
        num_repeats: timed generations of each cell and of each of its baselines.
        budget: below it a cell is degraded.
        is_sharing: ``False`` computes every step of every cell, and its baselines for it alone.
        is_at_once: every cell shows all prompts, whatever the first of them say.
        while_timing: entered around what is timed, so that nothing else of ours runs on the machine meanwhile.
    """

    def __init__(
        self,
        bench: Bench,
        pair_name: str,
        metrics: Mapping[str, Metric],
        num_repeats: int = 3,
        budget: QualityBudget | None = None,
        is_sharing: bool = True,
        is_at_once: bool = False,
        while_timing: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._bench = bench
        self._pair_name = pair_name
        self._metrics = dict(metrics)
        self._num_repeats = num_repeats
        self._budget = budget or QualityBudget()
        self._is_sharing = is_sharing
        self._while_timing = while_timing
        most = len(bench.prompts.texts)
        self._looks = (most,) if is_at_once else looks_up_to(most)
        self._is_screening = most <= LOOKS[0]
        self._num_calls: dict[CellSpec | None, int] = {}
        self._warm: set[CellSpec] = set()
        self._latents: dict[CellSpec, torch.Tensor] = {}  # of cells that more prompts may be shown

    def measure_baseline(self) -> PairBaselines:
        """Measure either denoiser of the pair alone. Raises ``FlowBlendError`` where large-only varies."""
        baseline = measure_baseline(self._bench, self._pair_name, self._metrics, self._added_at(0))
        assert baseline.large.num_forwards is not None
        self._num_calls[None] = baseline.large.num_forwards
        if len(self._looks) == 1:
            return baseline
        pilot = [self._added_at(look) for look, number in enumerate(self._looks) if number <= NUM_PILOT_PROMPTS]
        return with_pilot(self._bench, baseline, self._metrics, pilot)

    def measure(self, spec: CellSpec, baseline: PairBaselines) -> Measured:
        """Measure one cell by itself. Whatever it raises is its own result; only an interruption passes through."""
        return next(found for found in self.measure_together([spec], baseline) if isinstance(found, Measured))

    def measure_together(self, specs: Sequence[CellSpec], baseline: PairBaselines) -> Iterator[Began | Measured]:
        """Stacks on several schedules; each result as soon as nothing more is learnt about it."""
        stacks = list(dict.fromkeys(spec.stack for spec in specs))
        in_order = sorted(specs, key=lambda spec: (stacks.index(spec.stack), num_switches(spec)))
        cells = [CellInProgress(spec, self._blank(spec)) for spec in in_order]
        times = Times()
        cells = yield from self._make_all(cells, baseline, times)
        if not cells:
            return
        yield from self._time_all(cells, baseline, times)
        if len(cells) > 1 and not self._is_large_as_before(baseline, times):
            # One of them left something behind. Each by itself, on a pair that nothing has touched, shows which.
            self._begin_again()
            for cell in cells:
                if cell.is_running:
                    yield from self.measure_together([cell.spec], baseline)
                else:
                    yield Measured(cell.result)
            return
        for cell in cells:
            if cell.is_running:
                with self._errors_are_results_of(cell, baseline):
                    self._compare(cell, baseline, times)
        for look in range(1, len(self._looks)):
            left = [cell for cell in cells if cell.result.observed == Observed.UNDECIDED.value]
            yield from (self._measured(cell) for cell in cells if cell not in left)
            cells = left
            yield from self._show_more(cells, look, baseline)
        yield from map(self._measured, cells)

    def declare(self, spec: CellSpec) -> Verdict:
        """The verdict on a cell from the traits of its adapters, before anything runs."""
        bench = self._bench
        manager = make_plugin_manager(bench.plugins)
        adapters = make_adapters(manager, spec.stack)
        setting = setting_of(bench.pipe, denoiser_slot(bench.pipe), spec.schedule, "recompute")
        before = judge_adapters(adapters, bench.pipe, setting, adapters_by_name(manager).values())
        if before.composition is Composition.REFUSED:
            return before
        call = bench.call_arguments(spec) | arguments_set_by(adapters)
        return judge_call(adapters, setting, bench.pipe, call)

    # -- the rounds of work: each goes on with the cells that the one before left over ------------------------------

    def _make_all(
        self, cells: Sequence[CellInProgress], baseline: PairBaselines, times: Times
    ) -> Generator[Began | Measured, None, list[CellInProgress]]:
        done: dict[tuple[str, ...], list[GeneratedVideos]] = defaultdict(list)
        for cell in cells:
            yield self._began(cell, "videos")
            with self._errors_are_results_of(cell, baseline):
                self._declare(cell)
                with self._bench.enabled(cell.spec) as blend:
                    assert blend is not None
                    cell.made = self._make(cell, blend, done[cell.spec.stack])
                    self._generate_once_more(cell, blend, baseline, times)
                self._prepare_baselines(cell, times)
                if self._is_sharing:
                    done[cell.spec.stack].append(cell.made)
            if not cell.is_running:
                yield Measured(cell.result)
        left = [cell for cell in cells if cell.is_running]
        for cell in left:
            assert cell.made is not None
            cell.made = replace(cell.made, recordings=[])  # they are as large as the trajectories
        return left

    def _time_all(self, cells: Sequence[CellInProgress], baseline: PairBaselines, times: Times) -> Iterator[Began]:
        by_spec = {cell.spec: cell for cell in cells}
        yield Began(self._pair_name, cells[0].spec.id, "waiting for its turn to be timed", is_waiting=True)
        with self._while_timing():
            for number in range(self._num_repeats):
                for run in round_of_timing(by_spec, number):
                    cell = by_spec.get(run) if run is not None else None
                    if cell is not None and not cell.is_running:
                        continue
                    yield self._began(cell or cells[0], f"{number + 1} of {self._num_repeats}")
                    if cell is not None:
                        with self._errors_are_results_of(cell, baseline):
                            self._time(run, cell.result, times)
                    else:  # a baseline that fails is one that is missing
                        with contextlib.suppress(Exception):
                            self._time(run, cells[0].result, times)

    def _show_more(self, cells: Sequence[CellInProgress], look: int, baseline: PairBaselines) -> Iterator[Began]:
        """Make the videos that one more look adds, of cells that are not certain without them."""
        numbers = self._added_at(look)
        done: dict[tuple[str, ...], list[GeneratedVideos]] = defaultdict(list)
        for cell in cells:
            what = f"videos {numbers.start + 1} to {numbers.stop}"
            yield self._began(cell, what)
            with self._errors_are_results_of(cell, baseline):
                if len(baseline.videos) == look:
                    baseline.videos.append(self._bench.make_videos(None, f"large-only, {what}", numbers))
                    cell.result.num_forwards_run += len(numbers) * self._num_calls[None]
                with self._bench.enabled(cell.spec) as blend:
                    assert blend is not None
                    sources = done[cell.spec.stack] if self._is_sharing else []
                    made = self._bench.make_shared(blend, cell.spec, sources, f"{cell.spec.id}: {what}", numbers)
                done[cell.spec.stack].append(made)
                cell.result.num_forwards_run += made.num_forwards
                self._judge(cell, made.videos, baseline, look)

    # -- one part of one cell --------------------------------------------------------------------------------------

    def _blank(self, spec: CellSpec) -> CellResult:
        return CellResult(id=spec.id, pair=self._pair_name, schedule=spec.schedule.text, adapters=list(spec.stack))

    def _added_at(self, look: int) -> range:
        """Numbers of the prompts that a look adds to those before it."""
        return range(self._looks[look - 1] if look else 0, self._looks[look])

    def _measured(self, cell: CellInProgress) -> Measured:
        return Measured(cell.result, cell.made.videos if cell.made else None)

    def _began(self, cell: CellInProgress, what: str) -> Began:
        return Began(self._pair_name, cell.spec.id, what)

    @contextlib.contextmanager
    def _errors_are_results_of(self, cell: CellInProgress, baseline: PairBaselines) -> Iterator[None]:
        with cell.capture_errors():
            yield
        if cell.result.failure in ("raised", "out_of_memory"):
            cell.made = None
            self._make_sure_of_large(cell, baseline)

    def _declare(self, cell: CellInProgress) -> None:
        declared = self.declare(cell.spec)
        cell.result.declared = declared.composition.value
        cell.result.declared_reasons = [str(reason) for reason in declared.reasons]
        cell.inert = frozenset(reason.adapter for reason in declared.reasons if reason.adapter)
        if not self._bench.runs_refused:
            declared.refuse_if_it_must()

    def _make(self, cell: CellInProgress, blend: Blend, done: Sequence[GeneratedVideos]) -> GeneratedVideos:
        """Make the videos of a cell."""
        bench, spec, result = self._bench, cell.spec, cell.result
        started = time.perf_counter()
        forget_peak_memory()
        made = bench.make_shared(blend, spec, done, f"{spec.id}: videos", self._added_at(0))
        result.peak_memory_mb, result.peak_memory_of = peak_memory()
        result.num_forwards_run += made.num_forwards
        result.seconds_for_videos = time.perf_counter() - started
        return made

    def _generate_once_more(self, cell: CellInProgress, blend: Blend, baseline: PairBaselines, times: Times) -> None:
        """A whole generation of the first prompt in the same blend: it warms up, and tells what the cell calls.

        The timed ones are each the first of a blend of their own, so they differ from it where state leaks.
        """
        bench, spec, result = self._bench, cell.spec, cell.result
        times.latents[spec].append(bench.time_latents(spec, f"{spec.id}: warming up").latents)
        generation, flops = blend.trace.generations[-1], count_flops(blend.trace)
        num_steps = generation.calls[0].step.num_inference_steps
        sigmas = list(bench.pipe.scheduler.sigmas.tolist()) if spec.schedule.needs_sigmas else None
        result.stages = spec.schedule.describe(num_steps, sigmas)
        describe_generation(generation, result)
        self._learn_calls(spec, generation.calls)
        self._count(spec, result)
        if flops and baseline.flops:
            result.flops_fraction_linear = flops.linear / baseline.flops.linear
            result.flops_fraction_full = flops.full / baseline.flops.full

    def _prepare_baselines(self, cell: CellInProgress, times: Times) -> None:
        """Warm those up that this process has not run before; without sharing make their videos for this cell alone."""
        bench, spec, result = self._bench, cell.spec, cell.result
        if not self._is_sharing:
            started = time.perf_counter()
            videos = bench.make_videos(None, f"{spec.id}: large-only", self._added_at(0))
            result.num_forwards_run += len(videos) * self._num_calls[None]
            for baseline in (CellSpec(SMALL_ALONE), *baselines_of(spec)):
                with bench.enabled(baseline) as blend:
                    assert blend is not None
                    made = bench.make_shared(blend, baseline, (), f"{spec.id}: {baseline.id}", self._added_at(0))
                result.num_forwards_run += made.num_forwards
            result.seconds_for_videos = (result.seconds_for_videos or 0.0) + time.perf_counter() - started
        for baseline in baselines_of(spec):
            if baseline not in self._warm and baseline not in times.latents:
                self._warm.add(baseline)
                with bench.enabled(baseline) as blend:
                    assert blend is not None
                    bench.time_latents(baseline, f"{spec.id}: {baseline.id}, warming up")
                    self._learn_calls(baseline, blend.trace.generations[-1].calls)
                    self._count(baseline, result)

    def _time(self, run: CellSpec | None, payer: CellResult, times: Times) -> None:
        what = f"{run.id if run else 'large-only'}, timed"
        with self._bench.enabled(run):
            times.add(run, self._bench.time_latents(run, what))
        self._count(run, payer)

    def _compare(self, cell: CellInProgress, baseline: PairBaselines, times: Times) -> None:
        is_as_before = self._is_large_as_before(baseline, times)
        compare_cell(cell, baseline, times, is_as_before, self._metrics, self._bench.prompts.judge)
        assert cell.made is not None
        self._latents[cell.spec] = times.latents[cell.spec][-1]
        self._judge(cell, cell.made.videos, baseline, 0)
        if cell.result.observed == Observed.BROKEN.value:
            cell.result.failure = "inexact"
            self._make_sure_of_large(cell, baseline)

    def _judge(self, cell: CellInProgress, videos: Videos, baseline: PairBaselines, look: int) -> None:
        result = cell.result
        judge_fidelity(cell, videos, baseline.videos[look], self._looks, self._budget, self._is_screening)
        # Alone it would take its own baselines for its own seeds and every step; its timing shares nothing as it is.
        assert baseline.small.num_forwards is not None
        num_calls = self._num_calls[None] + self._num_calls[cell.spec] + baseline.small.num_forwards
        num_calls += sum(self._num_calls.get(one, 0) for one in baselines_of(cell.spec))
        result.num_forwards_alone = result.num_forwards_timed + result.num_prompts * num_calls
        if look == len(self._looks) - 1 or result.observed != Observed.UNDECIDED.value:
            audit(self._bench, cell, self._latents.pop(cell.spec))

    def _learn_calls(self, spec: CellSpec, calls: Sequence[CallRecord]) -> None:
        self._num_calls[spec] = sum(call.has_run for call in calls)

    def _count(self, spec: CellSpec | None, payer: CellResult) -> None:
        """Add a whole generation of the first prompt to the forwards that a cell took."""
        payer.num_forwards_run += self._num_calls[spec]
        payer.num_forwards_timed += self._num_calls[spec]

    def _is_large_as_before(self, baseline: PairBaselines, times: Times) -> bool:
        again = times.latents[None]
        return len(again) == self._num_repeats and all(torch.equal(one, baseline.latents) for one in again)

    def _make_sure_of_large(self, cell: CellInProgress, baseline: PairBaselines) -> None:
        """After a broken cell: is large-only what it was? If not, say so and begin again with a fresh pair."""
        result = cell.result
        try:
            again = self._bench.time_latents(None, f"{result.id}: large-only after it broke")
            result.is_teardown_clean = torch.equal(again.latents, baseline.latents)
        except Exception:
            result.is_teardown_clean = False
        if not result.is_teardown_clean:
            result.reasons.append("It left the pipeline changed; the cells after it ran on a freshly loaded pair.")
            self._begin_again()

    def _begin_again(self) -> None:
        self._bench.reload()
        self._warm.clear()
