"""Measuring the cells of a matrix, each beside its controls, in one process.

The cells of one stack are measured together: for the videos they share the steps that their schedules have in common,
and for the times one round of controls serves them all. A generation that is timed is always run whole.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from flowblend_plugins.adapter import arguments_set_by
from flowblend_plugins.calibration.divergence import Divergence, shadowed
from flowblend_plugins.errors import AdapterError, FlowBlendError, PairError, ScheduleError, StackError
from flowblend_plugins.hookspecs import Metric
from flowblend_plugins.manager import make_adapters, make_plugin_manager
from flowblend_plugins.pipeline import denoiser_slot
from flowblend_plugins.schedule import StageSchedule
from flowblend_plugins.stack import judge_adapters, judge_call, setting_of
from flowblend_plugins.trace import GenerationFlops
from flowblend_plugins.traits import Composition, Verdict

from .bench import Bench, Made, Videos, forget_peak_memory, peak_memory
from .cells import CellSpec
from .measurements import Times, compare_videos, count_flops, describe_generation, describe_times
from .orders import Began
from .results import CellResult, ControlResult
from .verdicts import Observation, Observed, QualityBudget, observe

_REFUSALS = (StackError, ScheduleError, PairError, AdapterError)
LARGE_ALONE = StageSchedule.named("LLL")
SMALL_ALONE = StageSchedule.named("SSS")


@dataclass(frozen=True)
class Baseline:
    """Either denoiser alone, against which every cell is held.

    Attributes:
        latents: of large-only, of the first prompt.
        videos: of large-only, of all prompts; ``small_videos`` of small-only.
        flops: of one large-only generation of the first prompt; ``None`` where they cannot be counted.
        divergences: of the small denoiser in that generation's shadow.
        large, small: what the results say of them.
        num_forwards: denoiser forwards that all this took, one for each video of a batch.
    """

    latents: torch.Tensor
    videos: Videos
    small_videos: Videos
    flops: GenerationFlops | None
    divergences: list[Divergence]
    large: ControlResult
    small: ControlResult
    num_forwards: int


@dataclass
class Measured:
    """A cell's result, and its videos to be written."""

    result: CellResult
    videos: Videos | None = None


@dataclass
class _Cell:
    """A cell while it is measured."""

    spec: CellSpec
    result: CellResult
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    made: Made | None = None

    @property
    def is_running(self) -> bool:
        return self.result.observed is None


class MatrixRunner:
    """Measures cells on one bench.

    Args:
        bench: the loaded pair and its call.
        pair_name: as results name it.
        metrics: name to function of (video, large-only's video).
        num_repeats: timed generations of each cell and of each of its controls.
        budget: below it a cell is degraded.
        is_sharing: ``False`` computes every step of every cell, and its controls for it alone.
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
        while_timing: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._bench = bench
        self._pair_name = pair_name
        self._metrics = dict(metrics)
        self._num_repeats = num_repeats
        self._budget = budget or QualityBudget()
        self._is_sharing = is_sharing
        self._while_timing = while_timing
        self._num_calls: dict[CellSpec | None, int] = {}
        self._warm: set[CellSpec | None] = set()

    def measure_baseline(self) -> Baseline:
        """Large-only: warm it up, watch the small denoiser in its shadow, make the reference videos. Then small-only.

        Raises:
            FlowBlendError: watching changed the trajectory, so nothing that follows could be trusted.
        """
        bench = self._bench
        first = bench.time_latents(None, "large-only, warming up")
        spec = CellSpec(LARGE_ALONE)
        with bench.enabled(spec) as blend:
            assert blend is not None
            with shadowed(blend.trace, bench.guidance_scale) as shadow:
                watched = bench.time_latents(spec, "large-only, the small denoiser in its shadow")
            flops, num_calls = count_flops(blend.trace), len(blend.trace.generations[-1].calls)
        self._num_calls[None] = num_calls
        second = bench.time_latents(None, "large-only")
        if not (torch.equal(watched.latents, first.latents) and torch.equal(second.latents, first.latents)):
            raise FlowBlendError(
                f"large-only on {self._pair_name} does not repeat itself bit for bit, so nothing can be compared with "
                "it. Is its sampler deterministic, and does another process change its weights?"
            )
        videos = bench.make_videos(None, "large-only, videos")
        large = ControlResult(latency_ms=second.latency_ms, num_forwards=num_calls)
        if flops:
            large.linear_flops, large.full_flops = flops.linear, flops.full
        compare_videos(videos, None, self._metrics, bench.prompts.judge, large)
        small, small_videos = self._measure_small(videos)
        assert small.num_forwards is not None
        num_forwards = num_calls * (4 + len(videos)) + small.num_forwards * (1 + len(videos))
        return Baseline(first.latents, videos, small_videos, flops, shadow.divergences, large, small, num_forwards)

    def _measure_small(self, large_videos: Videos) -> tuple[ControlResult, Videos]:
        bench, spec = self._bench, CellSpec(SMALL_ALONE)
        with bench.enabled(spec) as blend:
            assert blend is not None
            timed = bench.time_latents(spec, "small-only")
            flops, num_calls = count_flops(blend.trace), len(blend.trace.generations[-1].calls)
            videos = bench.make_videos(spec, "small-only, videos")
        small = ControlResult(latency_ms=timed.latency_ms, num_forwards=num_calls)
        if flops:
            small.linear_flops, small.full_flops = flops.linear, flops.full
        compare_videos(videos, large_videos, self._metrics, bench.prompts.judge, small)
        return small, videos

    def measure(self, spec: CellSpec, baseline: Baseline) -> Measured:
        """One cell. Whatever it raises is its own result; only an interruption passes through."""
        return next(found for found in self.measure_stack([spec], baseline) if isinstance(found, Measured))

    def measure_stack(self, specs: Sequence[CellSpec], baseline: Baseline) -> Iterator[Began | Measured]:
        """Cells of one stack on several schedules; each result as soon as nothing more is learnt about it."""
        cells = [_Cell(spec, self._blank(spec)) for spec in sorted(specs, key=_num_switches)]
        done: list[Made] = []
        for cell in cells:
            yield self._began(cell, "videos")
            with self._to_its_account(cell, baseline):
                self._declare(cell)
                cell.made = self._make(cell.spec, done, cell.result)
                if self._is_sharing:
                    done.append(cell.made)
            if not cell.is_running:
                yield Measured(cell.result)
        done.clear()
        cells = [cell for cell in cells if cell.is_running]
        for cell in cells:
            assert cell.made is not None
            cell.made = replace(cell.made, recordings=[])  # they are as large as the trajectories
        times = Times()
        for cell in cells:
            yield self._began(cell, "warming up")
            with self._to_its_account(cell, baseline):
                self._warm_up(cell, baseline, times)
            if not cell.is_running:
                yield Measured(cell.result)
        cells = [cell for cell in cells if cell.is_running]
        if cells:
            yield Began(self._pair_name, cells[0].spec.id, "waiting for its turn to be timed", is_waiting=True)
        with self._while_timing() if cells else contextlib.nullcontext():
            for repeat in range(self._num_repeats):
                for contender in self._order(cells, repeat):
                    cell = next((one for one in cells if one.spec == contender), None)
                    if cell is not None and not cell.is_running:
                        continue
                    yield self._began(cell or cells[0], f"{repeat + 1} of {self._num_repeats}")
                    self._time(contender, cell, cells[0].result, baseline, times)
        if len(cells) > 1 and not self._is_large_as_before(baseline, times):
            # One of them left something behind. Each by itself, on a pair that nothing has touched, shows which.
            self._bench.reload()
            self._warm.clear()
            for cell in cells:
                if cell.is_running:
                    yield from self.measure_stack([cell.spec], baseline)
                else:
                    yield Measured(cell.result)
            return
        for cell in cells:
            with self._to_its_account(cell, baseline):
                if cell.is_running:
                    self._judge(cell, baseline, times)
            yield Measured(cell.result, cell.made.videos if cell.made else None)

    def declare(self, spec: CellSpec) -> Verdict:
        """The verdict on a cell from the traits of its adapters, before anything runs."""
        bench = self._bench
        adapters = make_adapters(make_plugin_manager(bench.plugins), spec.stack)
        setting = setting_of(bench.pipe, denoiser_slot(bench.pipe), spec.schedule, "recompute")
        before = judge_adapters(adapters, bench.pipe, setting)
        if before.composition is Composition.REFUSED:
            return before
        call = bench.call_arguments(spec) | arguments_set_by(adapters)
        return judge_call(adapters, setting, bench.pipe, call)

    # -- one part of one cell --------------------------------------------------------------------------------------

    def _blank(self, spec: CellSpec) -> CellResult:
        return CellResult(id=spec.id, pair=self._pair_name, schedule=spec.schedule.text, adapters=list(spec.stack))

    def _began(self, cell: _Cell, what: str) -> Began:
        return Began(self._pair_name, cell.spec.id, what)

    @contextlib.contextmanager
    def _to_its_account(self, cell: _Cell, baseline: Baseline) -> Iterator[None]:
        """What is raised in here is the cell's result, and the time is the cell's."""
        result, started = cell.result, time.perf_counter()
        try:
            yield
        except _REFUSALS as error:
            _conclude(result, Observed.REFUSED, [str(error)])
            if result.declared not in (None, Composition.REFUSED.value):
                result.reasons.append(f"Its traits say {result.declared!r}, so this was not foreseen.")
        except ModuleNotFoundError as error:
            _conclude(result, Observed.SKIPPED, [f"{error.name} is not installed."])
        except Exception as error:
            _conclude(result, Observed.BROKEN, [_in_words(error)])
            result.failure = "out_of_memory" if _is_out_of_memory(error) else "raised"
            result.error = "".join(traceback.format_exception(error)[-4:])
        if result.failure in ("raised", "out_of_memory"):
            cell.made = None
            self._make_sure_of_large(baseline, result)
        result.seconds = (result.seconds or 0.0) + time.perf_counter() - started

    def _declare(self, cell: _Cell) -> None:
        declared = self.declare(cell.spec)
        cell.result.declared = declared.composition.value
        cell.result.declared_reasons = [str(reason) for reason in declared.reasons]
        if declared.composition is Composition.REFUSED:
            declared.refuse_if_it_must()

    def _make(self, spec: CellSpec, done: Sequence[Made], result: CellResult) -> Made:
        """The cell's videos; without sharing those of its controls too, which then serve it alone."""
        bench, what = self._bench, f"{spec.id}: videos"
        started = time.perf_counter()
        forget_peak_memory()
        made = bench.make_shared(spec, done, what)
        result.peak_memory_mb, result.peak_memory_of = peak_memory()
        result.num_forwards_run += made.num_forwards
        if not self._is_sharing:
            for control in (CellSpec(SMALL_ALONE), *_controls(spec)):
                if control is None:
                    videos = bench.make_videos(None, f"{spec.id}: large-only")
                    result.num_forwards_run += len(videos) * self._num_calls[None]
                else:
                    result.num_forwards_run += bench.make_shared(control, (), f"{spec.id}: {control.id}").num_forwards
        result.seconds_for_videos = time.perf_counter() - started
        return made

    def _warm_up(self, cell: _Cell, baseline: Baseline, times: Times) -> None:
        """A whole generation of the cell, and of its controls where this process has not run them before."""
        bench, spec = self._bench, cell.spec
        with bench.enabled(spec) as blend:
            assert blend is not None
            times.latents[spec].append(bench.time_latents(spec, f"{spec.id}: warming up").latents)
            generation, flops = blend.trace.generations[-1], count_flops(blend.trace)
        num_steps = generation.calls[0].step.num_inference_steps
        sigmas = list(bench.pipe.scheduler.sigmas.tolist()) if spec.schedule.needs_sigmas else None
        cell.result.stages = spec.schedule.describe(num_steps, sigmas)
        describe_generation(generation, cell.result)
        self._count(spec, generation.calls, cell.result)
        if flops and baseline.flops:
            cell.result.flops_fraction_linear = flops.linear / baseline.flops.linear
            cell.result.flops_fraction_full = flops.full / baseline.flops.full
        for control in _controls(spec):
            if control is not None and control not in self._warm and control not in times.latents:
                self._warm.add(control)
                with bench.enabled(control) as blend:
                    assert blend is not None
                    bench.time_latents(control, f"{spec.id}: {control.id}, warming up")
                    self._count(control, blend.trace.generations[-1].calls, cell.result)

    def _count(self, spec: CellSpec | None, calls: Sequence[object] | None, result: CellResult) -> None:
        """Add a whole generation of the first prompt to the forwards that a cell took."""
        if calls is not None:
            self._num_calls[spec] = sum(getattr(call, "outcome", "compute") == "compute" for call in calls)
        result.num_forwards_run += self._num_calls[spec]
        result.num_forwards_timed += self._num_calls[spec]

    def _order(self, cells: Sequence[_Cell], repeat: int) -> list[CellSpec | None]:
        """A round: every cell and every control of any once, large-only last; every other round backwards."""
        contenders: dict[CellSpec | None, None] = dict.fromkeys(cell.spec for cell in cells)
        for cell in cells:
            contenders |= dict.fromkeys(control for control in _controls(cell.spec) if control is not None)
        order = [*contenders, None]
        # Backwards in turn, so that a machine that slows down slows all of them alike.
        return order if repeat % 2 == 0 else order[::-1]

    def _time(
        self, contender: CellSpec | None, cell: _Cell | None, payer: CellResult, baseline: Baseline, times: Times
    ) -> None:
        bench, what = self._bench, f"{contender.id if contender else 'large-only'}, timed"
        if cell is None:
            with (
                contextlib.suppress(Exception),
                bench.enabled(contender),
            ):  # a control that fails is one that is missing
                times.add(contender, bench.time_latents(contender, what))
                self._count(contender, None, payer)
            return
        with self._to_its_account(cell, baseline), bench.enabled(contender):
            times.add(contender, bench.time_latents(contender, what))
            self._count(contender, None, cell.result)

    def _judge(self, cell: _Cell, baseline: Baseline, times: Times) -> None:
        spec, result, made = cell.spec, cell.result, cell.made
        assert made is not None
        blend, stack = _blend_of(spec), _stack_of(spec)
        names = {"cell": spec, "large": None} | ({"blend": blend, "stack": stack} if blend and stack else {})
        describe_times({name: times.ms[one] for name, one in names.items() if times.ms[one]}, result)
        result.num_timed = len(times.ms[spec])
        own = times.latents[spec][-1]
        result.is_warm_equal = all(torch.equal(one, own) for one in times.latents[spec])
        result.is_teardown_clean = self._is_large_as_before(baseline, times)
        # Where the schedule never changes denoisers, the blend alone is large-only.
        unstacked = times.latents[blend or None] if spec.stack else []
        videos = made.videos
        result.is_identical_to_large = torch.equal(own, baseline.latents) and np.array_equal(videos, baseline.videos)
        compare_videos(videos, baseline.videos, self._metrics, self._bench.prompts.judge, result)
        self._count_what_it_would_take_alone(spec, baseline, result, len(videos))
        verdict, reasons = observe(
            Observation(
                is_large_alone=spec.is_large_alone,
                is_finite=bool(torch.isfinite(own).all()) and bool(np.isfinite(videos).all()),
                is_warm_equal=result.is_warm_equal,
                is_teardown_clean=result.is_teardown_clean,
                is_identical_to_large=result.is_identical_to_large,
                is_identical_to_blend=torch.equal(own, unstacked[-1]) if unstacked else None,
                num_other_forwards=sum(row["num"] for row in result.forwards if row["denoiser"] != "L"),
                psnr_db=result.psnr_db,
                ssim=result.ssim,
                alignment=result.prompt_alignment,
                large_alignment=baseline.large.prompt_alignment,
            ),
            self._budget,
        )
        _conclude(result, verdict, reasons)
        if verdict is Observed.BROKEN:
            result.failure = "inexact"
            self._make_sure_of_large(baseline, result)

    def _count_what_it_would_take_alone(
        self, spec: CellSpec, baseline: Baseline, result: CellResult, num_videos: int
    ) -> None:
        """Its own controls for its own seeds and every step of it; its timing, which shares nothing, as it was."""
        assert baseline.small.num_forwards is not None
        num_calls = self._num_calls[spec] + baseline.small.num_forwards
        num_calls += sum(self._num_calls.get(control, 0) for control in _controls(spec))
        result.num_forwards_alone = result.num_forwards_timed + num_videos * num_calls

    def _is_large_as_before(self, baseline: Baseline, times: Times) -> bool:
        again = times.latents[None]
        return len(again) == self._num_repeats and all(torch.equal(one, baseline.latents) for one in again)

    def _make_sure_of_large(self, baseline: Baseline, result: CellResult) -> None:
        """After a broken cell: is large-only what it was? If not, say so and begin again with a fresh pair."""
        try:
            again = self._bench.time_latents(None, f"{result.id}: large-only after it broke")
            result.is_teardown_clean = torch.equal(again.latents, baseline.latents)
        except Exception:
            result.is_teardown_clean = False
        if not result.is_teardown_clean:
            result.reasons.append("It left the pipeline changed; the cells after it ran on a freshly loaded pair.")
            self._bench.reload()
            self._warm.clear()


def _num_switches(spec: CellSpec) -> int:
    """Cells with fewer switches come first: a later one shares their steps up to where it switches."""
    letters = [run.denoiser for run in spec.schedule.runs]
    return sum(a != b for a, b in itertools.pairwise(letters))


def _blend_of(spec: CellSpec) -> CellSpec | None:
    """The control without the stack, where that is not large-only."""
    return CellSpec(spec.schedule) if spec.stack and spec.schedule.letters != {"L"} else None


def _stack_of(spec: CellSpec) -> CellSpec | None:
    """The control without the schedule: the stack on the large denoiser alone."""
    return CellSpec(LARGE_ALONE, spec.stack) if spec.stack and spec.schedule.letters != {"L"} else None


def _controls(spec: CellSpec) -> list[CellSpec | None]:
    """Large-only (``None``), and what stands between it and the cell."""
    return [None, *(control for control in (_blend_of(spec), _stack_of(spec)) if control is not None)]


def _conclude(result: CellResult, verdict: Observed, reasons: Iterable[str]) -> None:
    result.observed = verdict.value
    result.reasons = list(reasons)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _in_words(error: BaseException) -> str:
    if _is_out_of_memory(error):
        first_line = str(error).partition("\n")[0]
        return f"It ran out of memory: {type(error).__name__}: {first_line}".rstrip(": ")
    return f"It raised {type(error).__name__}: {error}"
