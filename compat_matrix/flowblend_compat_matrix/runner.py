"""Measuring the cells of a matrix, each beside its controls, in one process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

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
from flowblend_plugins.trace import GenerationFlops, Trace
from flowblend_plugins.traits import Composition, Verdict

from .bench import Bench, Timed, Videos, forget_peak_memory, peak_memory_mb
from .cells import CellSpec
from .measurements import count_flops, describe_generation, describe_times, over_prompts
from .metrics import flicker
from .results import CellResult, ControlResult
from .verdicts import Observation, Observed, QualityBudget, observe

_REFUSALS = (StackError, ScheduleError, PairError, AdapterError)
_LARGE_ALONE = StageSchedule.named("LLL")


@dataclass(frozen=True)
class Baseline:
    """Large-only, against which every cell is held.

    Attributes:
        latents: of the first prompt.
        videos: of all prompts.
        flops: of one generation of the first prompt; ``None`` where they cannot be counted.
        divergences: of the small denoiser in that generation's shadow.
        record: what the results say of it.
    """

    latents: torch.Tensor
    videos: Videos
    flops: GenerationFlops | None
    divergences: list[Divergence]
    record: ControlResult


@dataclass
class Measured:
    """A cell's result, and its videos to be written."""

    result: CellResult
    videos: Videos | None


class MatrixRunner:
    """Measures cells on one bench.

    Args:
        bench: the loaded pair and its call.
        pair_name: as results name it.
        metrics: name to function of (video, large-only's video).
        num_repeats: timed generations of each cell and of each of its controls.
        budget: below it a cell is degraded.
    """

    def __init__(
        self,
        bench: Bench,
        pair_name: str,
        metrics: Mapping[str, Metric],
        num_repeats: int = 3,
        budget: QualityBudget | None = None,
    ) -> None:
        self._bench = bench
        self._pair_name = pair_name
        self._metrics = dict(metrics)
        self._num_repeats = num_repeats
        self._budget = budget or QualityBudget()

    def measure_baseline(self) -> Baseline:
        """Large-only: warm it up, watch the small denoiser in its shadow, and make the reference videos.

        Raises:
            FlowBlendError: watching changed the trajectory, so nothing that follows could be trusted.
        """
        bench = self._bench
        first = bench.time_latents(None, "large-only, warming up")
        spec = CellSpec(_LARGE_ALONE)
        with bench.enabled(spec) as blend:
            assert blend is not None
            with shadowed(blend.trace, bench.guidance_scale) as shadow:
                watched = bench.time_latents(spec, "large-only, the small denoiser in its shadow")
            flops, num_forwards = count_flops(blend.trace), len(blend.trace.generations[-1].calls)
        second = bench.time_latents(None, "large-only")
        if not (torch.equal(watched.latents, first.latents) and torch.equal(second.latents, first.latents)):
            raise FlowBlendError(
                f"large-only on {self._pair_name} does not repeat itself bit for bit, so nothing can be compared with "
                "it. Is its sampler deterministic, and does another process change its weights?"
            )
        videos = bench.make_videos(None, "large-only, videos")
        judge = bench.prompts.judge
        record = ControlResult(
            latency_ms=second.latency_ms,
            linear_flops=flops.linear if flops else None,
            full_flops=flops.full if flops else None,
            num_forwards=num_forwards,
            prompt_alignment=judge.alignment(videos) if judge else None,
            frechet_distance=judge.frechet_distance(videos) if judge else None,
            metrics={"flicker": {"mean": flicker(videos), "std": None}} if videos.shape[1] >= 3 else {},
        )
        return Baseline(first.latents, videos, flops, shadow.divergences, record)

    def measure(self, spec: CellSpec, baseline: Baseline) -> Measured:
        """One cell. Whatever it raises is its own result; only an interruption passes through."""
        started = time.perf_counter()
        result = CellResult(id=spec.id, pair=self._pair_name, schedule=spec.schedule.text, adapters=list(spec.stack))
        videos = None
        try:
            declared = self.declare(spec)
            result.declared = declared.composition.value
            result.declared_reasons = [str(reason) for reason in declared.reasons]
            videos = self._measure_running(spec, baseline, result)
        except _REFUSALS as error:
            _conclude(result, Observed.REFUSED, [str(error)])
            if result.declared not in (None, Composition.REFUSED.value):
                result.reasons.append(f"Its traits say {result.declared!r}, so this was not foreseen.")
        except ModuleNotFoundError as error:
            _conclude(result, Observed.SKIPPED, [f"{error.name} is not installed."])
        except Exception as error:
            _conclude(result, Observed.BROKEN, [f"It raised {type(error).__name__}: {error}"])
            result.error = "".join(traceback.format_exception(error)[-4:])
        if result.observed == Observed.BROKEN.value:
            self._make_sure_of_large(baseline, result)
        result.seconds = time.perf_counter() - started
        return Measured(result, videos)

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

    def _measure_running(self, spec: CellSpec, baseline: Baseline, result: CellResult) -> Videos:
        bench = self._bench
        contenders = dict(_contenders(spec))
        times: dict[str, list[float]] = {name: [] for name in contenders}
        latents: dict[str, list[torch.Tensor]] = {name: [] for name in contenders}
        for repeat in range(self._num_repeats):
            # Forwards and backwards in turn, so that a machine that slows down slows all of them alike.
            order = list(contenders) if repeat % 2 == 0 else list(reversed(contenders))
            for name in order:
                with bench.enabled(contenders[name]) as blend:
                    what = f"{spec.id}: {name}, {repeat + 1} of {self._num_repeats}"
                    if repeat == 0 and contenders[name] is not None:
                        latents[name].append(bench.time_latents(contenders[name], f"{what}, warming up").latents)
                    timed: Timed = bench.time_latents(contenders[name], what)
                    latents[name].append(timed.latents)
                    times[name].append(timed.latency_ms)
                    if name == "cell" and repeat == 0:
                        assert blend is not None
                        self._describe_generation(spec, blend.trace, baseline, result)
        describe_times(times, result)
        forget_peak_memory()
        with bench.enabled(spec):
            videos = bench.make_videos(spec, f"{spec.id}: videos")
        result.peak_memory_mb = peak_memory_mb()
        self._compare(spec, baseline, latents, videos, result)
        return videos

    def _describe_generation(self, spec: CellSpec, trace: Trace, baseline: Baseline, result: CellResult) -> None:
        generation = trace.generations[-1]
        num_steps = generation.calls[0].step.num_inference_steps
        sigmas = list(self._bench.pipe.scheduler.sigmas.tolist()) if spec.schedule.needs_sigmas else None
        result.stages = spec.schedule.describe(num_steps, sigmas)
        describe_generation(generation, result)
        flops = count_flops(trace)
        if flops and baseline.flops:
            result.flops_fraction_linear = flops.linear / baseline.flops.linear
            result.flops_fraction_full = flops.full / baseline.flops.full

    def _compare(
        self,
        spec: CellSpec,
        baseline: Baseline,
        latents: Mapping[str, list[torch.Tensor]],
        videos: Videos,
        result: CellResult,
    ) -> None:
        own = latents["cell"][-1]
        result.is_warm_equal = all(torch.equal(one, own) for one in latents["cell"])
        result.is_teardown_clean = all(torch.equal(one, baseline.latents) for one in latents["large"])
        # Where the schedule never changes denoisers, the blend alone is large-only.
        blend = latents.get("blend", latents["large"])[-1] if spec.stack else None
        result.is_identical_to_large = torch.equal(own, baseline.latents) and np.array_equal(videos, baseline.videos)
        for name, metric in self._metrics.items():
            mean, std = over_prompts(name, metric, videos, baseline.videos)
            if name == "psnr_db":
                result.psnr_db, result.psnr_db_std = mean, std
            elif name == "ssim":
                result.ssim, result.ssim_std = mean, std
            else:
                result.metrics[name] = {"mean": mean, "std": std}
        judge = self._bench.prompts.judge
        if judge is not None:
            result.prompt_alignment = judge.alignment(videos)
            result.frechet_distance = judge.frechet_distance(videos)
        verdict, reasons = observe(
            Observation(
                is_large_alone=spec.is_large_alone,
                is_finite=bool(torch.isfinite(own).all()) and bool(np.isfinite(videos).all()),
                is_warm_equal=result.is_warm_equal,
                is_teardown_clean=result.is_teardown_clean,
                is_identical_to_large=result.is_identical_to_large,
                is_identical_to_blend=None if blend is None else torch.equal(own, blend),
                num_other_forwards=sum(row["num"] for row in result.forwards if row["denoiser"] != "L"),
                psnr_db=result.psnr_db,
                ssim=result.ssim,
                alignment=result.prompt_alignment,
                large_alignment=baseline.record.prompt_alignment,
            ),
            self._budget,
        )
        _conclude(result, verdict, reasons)

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


def num_generations(spec: CellSpec, num_repeats: int, num_prompt_batches: int) -> int:
    """Pipeline calls that measuring a cell takes if nothing goes wrong."""
    contenders = list(_contenders(spec))
    return len(contenders) * num_repeats + sum(one is not None for _, one in contenders) + num_prompt_batches


def num_baseline_generations(num_prompt_batches: int) -> int:
    """Pipeline calls that :meth:`MatrixRunner.measure_baseline` takes."""
    return 3 + num_prompt_batches


def _contenders(spec: CellSpec) -> Iterator[tuple[str, CellSpec | None]]:
    """The cell and its controls. Large-only stands right after the cell: it also shows whether the undo is clean."""
    yield "cell", spec
    yield "large", None
    if spec.stack and spec.schedule.letters != {"L"}:
        yield "blend", CellSpec(spec.schedule)
        yield "stack", CellSpec(_LARGE_ALONE, spec.stack)


def _conclude(result: CellResult, verdict: Observed, reasons: Iterable[str]) -> None:
    result.observed = verdict.value
    result.reasons = list(reasons)
