"""Measuring the cells of the table: videos and FLOPs of each, then times, all cells in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from flowblend_compat_matrix.measuring.bench import Bench, Videos
from flowblend_compat_matrix.measuring.fidelity import each, over_prompts
from flowblend_compat_matrix.measuring.measurements import count_flops
from flowblend_compat_matrix.measuring.metrics import psnr_db
from flowblend_compat_matrix.results.cells import PAPER_SCHEDULES
from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.types import JsonObject

from .columns import CONTROL, Column


@dataclass
class Cell:
    """One row of one column.

    FLOPs are of one video, 2 per multiply-add, over the calls really made. Times are of prompt encoding and denoising.

    Attributes:
        column, schedule: which.
        steps: which denoiser answers when, in places of the sampler's list.
        num_large_forwards, num_small_forwards: denoiser calls, one for each guidance branch.
        linear_flops, full_flops: linear layers only, as the paper counts; and all.
        psnr_to_control_db, psnr_to_baseline_db: mean over prompts, to the large-only control of the column and to that
            of the first column; ``None`` to itself.
        psnr_to_control_std_db, psnr_to_baseline_std_db: over prompts.
        alignment: share of captioned attributes that are right.
        frechet_distance: to real videos of the world.
        latency_ms: median of the rounds.
        speedup_over_control, speedup_over_baseline: median of the rounds' ratios.
        speedup_over_control_range, speedup_over_baseline_range: least and greatest of them.
    """

    column: str
    schedule: str
    steps: str
    num_large_forwards: int
    num_small_forwards: int
    linear_flops: int
    full_flops: int
    psnr_to_control_db: float | None
    psnr_to_control_std_db: float | None
    psnr_to_baseline_db: float | None
    psnr_to_baseline_std_db: float | None
    alignment: float
    frechet_distance: float
    latency_ms: float = 0.0
    speedup_over_control: float = 1.0
    speedup_over_control_range: tuple[float, float] = (1.0, 1.0)
    speedup_over_baseline: float = 1.0
    speedup_over_baseline_range: tuple[float, float] = (1.0, 1.0)

    def to_json(self) -> JsonObject:
        return asdict(self)


def measure(bench: Bench, columns: Sequence[Column], num_repeats: int, report: Callable[[str], None]) -> list[Cell]:
    """Every cell of every column, column by column.

    Args:
        bench: the pair, with prompts and a judge of them.
        columns: the first has the baseline.
        num_repeats: rounds of timing, after one that is not counted.
        report: told of every cell.

    Raises:
        FlowBlendError: FLOPs cannot be counted, or a repeated generation is not the same.
    """
    cells = []
    baseline: Videos | None = None
    for column in columns:
        control: Videos | None = None
        for schedule in sorted(PAPER_SCHEDULES, key=lambda name: name != CONTROL):  # the control comes first
            cell, videos = _measure_quality(bench, column, schedule, control, baseline)
            control = videos if control is None else control
            baseline = videos if baseline is None else baseline
            cells.append(cell)
            report(f"{column.name}, {schedule}: alignment {cell.alignment:.3f}, to control {cell.psnr_to_control_db}")
    names = [column.name for column in columns]
    cells.sort(key=lambda cell: (names.index(cell.column), PAPER_SCHEDULES.index(cell.schedule)))
    _measure_times(bench, columns, cells, num_repeats, report)
    return cells


def _measure_quality(
    bench: Bench, column: Column, schedule: str, control: Videos | None, baseline: Videos | None
) -> tuple[Cell, Videos]:
    judge = bench.prompts.judge
    assert judge is not None
    spec = column.spec(schedule)
    with bench.enabled(spec) as blend:
        assert blend is not None
        bench.time_latents(spec, "")
        generation, flops = blend.trace.generations[-1], count_flops(blend.trace)
        if flops is None:
            raise FlowBlendError(f"{column.name}, {schedule}: FLOPs cannot be counted from shapes alone.")
        steps = spec.schedule.describe(generation.calls[0].step.num_inference_steps)
        videos = bench.make_videos(spec, "")
    to_control, to_baseline = (
        (None, None) if other is None else over_prompts(each("psnr_db", psnr_db, videos, other))
        for other in (control, baseline)
    )
    frechet_distance = judge.frechet_distance(videos)
    if frechet_distance is None:
        raise FlowBlendError("a Frechet distance needs at least two prompts.")
    cell = Cell(
        column=column.name,
        schedule=schedule,
        steps=steps,
        num_large_forwards=generation.num_forwards("L", "compute"),
        num_small_forwards=generation.num_forwards("S", "compute"),
        linear_flops=flops.linear,
        full_flops=flops.full,
        psnr_to_control_db=to_control[0],
        psnr_to_control_std_db=to_control[1],
        psnr_to_baseline_db=to_baseline[0],
        psnr_to_baseline_std_db=to_baseline[1],
        alignment=judge.alignment(videos),
        frechet_distance=frechet_distance,
    )
    return cell, videos


def _measure_times(
    bench: Bench, columns: Sequence[Column], cells: Sequence[Cell], num_repeats: int, report: Callable[[str], None]
) -> None:
    """One generation of every cell in each round, forwards and backwards in turn: a slow moment slows all of them."""
    specs = {column.name: column for column in columns}
    times = np.zeros((num_repeats + 1, len(cells)))
    for round_index in range(num_repeats + 1):
        order = range(len(cells)) if round_index % 2 == 0 else reversed(range(len(cells)))
        for number in order:
            spec = specs[cells[number].column].spec(cells[number].schedule)
            with bench.enabled(spec):
                times[round_index, number] = bench.time_latents(spec, "").latency_ms
        report(f"timing, round {round_index} of {num_repeats}")
    times = times[1:]
    place = {(cell.column, cell.schedule): number for number, cell in enumerate(cells)}
    for number, cell in enumerate(cells):
        own = times[:, number]
        over_control = times[:, place[cell.column, CONTROL]] / own
        over_baseline = times[:, place[columns[0].name, CONTROL]] / own
        cell.latency_ms = float(np.median(own))
        cell.speedup_over_control, cell.speedup_over_control_range = _median_and_range(over_control)
        cell.speedup_over_baseline, cell.speedup_over_baseline_range = _median_and_range(over_baseline)


def _median_and_range(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    return float(np.median(values)), (float(values.min()), float(values.max()))
