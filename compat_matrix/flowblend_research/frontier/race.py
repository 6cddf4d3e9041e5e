"""Stacks measured against large-only, one prompt after another, all of them in every round.

A round is one prompt: large-only runs three times among the stacks, and a stack's speed-up in that round is the
median of these times over its own. So what slows the machine down for a while slows both sides, and every video counts
for quality and for time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flowblend_compat_matrix.measuring.bench import Bench, Videos
from flowblend_compat_matrix.measuring.metrics import psnr_db
from flowblend_compat_matrix.results.cells import CellSpec
from flowblend_plugins.blend import Blend
from flowblend_plugins.errors import FlopCountError, FlowBlendError
from flowblend_plugins.schedule import StageSchedule

LARGE_RUNS = 3
Cost = Literal["time", "flops"]


@dataclass(frozen=True)
class Configuration:
    """A schedule and a stack, as texts that ``enable`` and the command line take."""

    schedule: str
    adapters: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " + ".join((self.schedule, *self.adapters))

    @property
    def spec(self) -> CellSpec:
        return CellSpec(StageSchedule.parse(self.schedule), self.adapters)


@dataclass(frozen=True)
class Point:
    """Figures that were measured of a stack.

    Attributes:
        configuration: the stack.
        speedup: over large-only, the median over the rounds; ``speedup_range`` its quartiles.
        flops_fraction: of large-only's, attention included; NaN where it cannot be counted.
        psnr_db: to large-only at the same seeds, the mean over the prompts; infinite values count as 99 dB.
        psnr_std_db: over the prompts.
        alignment: share of captioned attributes that are right; NaN where nobody judges.
        frechet: distance to real videos; NaN where there is none.
    """

    configuration: Configuration
    speedup: float
    speedup_range: tuple[float, float]
    flops_fraction: float
    psnr_db: float
    psnr_std_db: float
    alignment: float
    frechet: float

    def gain(self, cost: Cost) -> float:
        """Factor by which it is cheaper than large-only: in time as measured, or in FLOPs."""
        return self.speedup if cost == "time" else 1.0 / self.flops_fraction


@dataclass
class _Lane:
    configuration: Configuration
    ratios: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    psnrs: list[float] = field(default_factory=list)
    videos: list[Videos] = field(default_factory=list)

    def add(self, video: Videos, wanted: Videos, ratio: float) -> None:
        self.videos.append(video)
        self.psnrs.append(min(99.0, psnr_db(video, wanted)))
        self.ratios.append(ratio)


class Race:
    """Measures stacks on one bench.

    Args:
        bench: its prompts are the rounds.
        report: told of every round that is done.
    """

    def __init__(self, bench: Bench, report: Callable[[str], None] = lambda text: None) -> None:
        self.bench = bench
        self.large: Point | None = None
        self.refused: dict[Configuration, str] = {}
        self._report = report

    def run(self, configurations: Iterable[Configuration], numbers: Sequence[int]) -> list[Point]:
        """Points of those stacks that are not refused, in their order.

        Args:
            configurations: each is run once in every round.
            numbers: of the bench's prompts, a round each.
        """
        lanes = [_Lane(one) for one in dict.fromkeys(configurations)]
        large = _Lane(Configuration("LLL"))
        for done, number in enumerate(numbers, start=1):
            lanes = [lane for lane in lanes if lane.configuration not in self.refused]
            self._round(lanes, large, number, done)
            self._report(f"round {done} of {len(numbers)}")
        self.large = self._point(large)
        return [self._point(lane) for lane in lanes if lane.configuration not in self.refused]

    def _round(self, lanes: Sequence[_Lane], large: _Lane, number: int, turn: int) -> None:
        wanted, first_ms = self.bench.make_one(None, number)
        large_ms, made = [first_ms], {}
        turned = [*lanes[turn % max(1, len(lanes)) :], *lanes[: turn % max(1, len(lanes))]]
        pauses = {math.ceil(len(turned) * part / (LARGE_RUNS - 1)) for part in range(1, LARGE_RUNS)}
        for place, lane in enumerate(turned, start=1):
            made[lane.configuration] = self._make(lane, number)
            if place in pauses:
                large_ms.append(self.bench.make_one(None, number)[1])
        usual = statistics.median(large_ms)
        large.add(wanted, wanted, usual / first_ms)
        large.flops.append(1.0)
        for lane in turned:
            if (found := made[lane.configuration]) is not None:
                lane.add(found[0], wanted, usual / found[1])

    def _make(self, lane: _Lane, number: int) -> tuple[Videos, float] | None:
        spec = lane.configuration.spec
        try:
            with self.bench.enabled(spec) as blend:
                made = self.bench.make_one(spec, number)
                assert blend is not None
                try:
                    lane.flops.append(blend.trace.flops().full_fraction_of_large * self._steps_kept(blend))
                except FlopCountError:
                    lane.flops.append(math.nan)
        except FlowBlendError as error:
            self.refused[lane.configuration] = str(error)
            return None
        return made

    def _steps_kept(self, blend: Blend) -> float:
        """Steps of this generation over those of large-only, which a trace cannot know."""
        own = blend.trace.generations[-1].calls[0].step.num_inference_steps
        return own / self.bench.call.get("num_inference_steps", own)

    def _point(self, lane: _Lane) -> Point:
        videos, judge = np.stack(lane.videos), self.bench.prompts.judge
        quartiles = statistics.quantiles(lane.ratios, n=4) if len(lane.ratios) > 1 else [lane.ratios[0]] * 3
        is_whole = judge is not None and len(videos) == len(self.bench.prompts.texts)
        frechet = judge.frechet_distance(videos) if judge is not None and is_whole else None
        return Point(
            configuration=lane.configuration,
            speedup=statistics.median(lane.ratios),
            speedup_range=(quartiles[0], quartiles[2]),
            flops_fraction=statistics.fmean(lane.flops),
            psnr_db=statistics.fmean(lane.psnrs),
            psnr_std_db=statistics.pstdev(lane.psnrs),
            alignment=judge.alignment(videos) if judge is not None and is_whole else math.nan,
            frechet=math.nan if frechet is None else frechet,
        )
