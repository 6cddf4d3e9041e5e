"""Searching stage boundaries: every trial starts from what the one large-only generation of each prompt left behind.

The denoiser calls of that generation are recorded, and a trial is answered from the recording up to where its schedule
parts from it (:mod:`flowblend_plugins.routing.replay`), so latents and solver state are those of a whole run, bit for
bit. A trial of LSS costs its small steps; a trial of LSL is answered from LSS as well and costs its late steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np

from ..blend import Blend
from ..errors import FlowBlendError
from ..routing.replay import Recording
from ..schedule import StageSchedule
from ..types import Output
from .calibration import Calibration, SearchCost, TrialResult
from .measuring import Order, count_flops, refuse_all_but_solvers
from .search import Boundaries, boundaries_on_grid, resolution, shortest_early, sufficient_late
from .setting import CalibrationSetting
from .similarity import NamedSimilarity, Similarity, Video

DEFAULT_THRESHOLD = 0.96
DEFAULT_BUDGET = 2.0

_NO_REPORT: Callable[[TrialResult], None] = lambda trial: None  # noqa: E731


def search_boundaries(
    order: Order,
    similarity: Similarity,
    artefact: NamedSimilarity,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    budget: float = DEFAULT_BUDGET,
    on_grid: bool = False,
    report: Callable[[TrialResult], None] = _NO_REPORT,
) -> Calibration:
    """The early and the late boundary of a pair; :mod:`flowblend_plugins.calibration.search` defines them.

    Args:
        similarity: of a video to large-only's.
        artefact: named metric of a video and large-only's, 0 for equal ones.
        threshold: similarity that LSS must keep, the mean over prompts; .96 in FlowBlending.
        budget: FLOPs of the whole search for each prompt, in large-only generations. The scan for the late boundary
            ends there, and the result says so.
        on_grid: try every candidate instead, at any cost.
        report: called after every trial.

    Raises:
        AdapterError: an adapter is no solver.
        FlowBlendError: as :func:`flowblend_plugins.enable` raises.
    """
    trials = _Trials(order, similarity, artefact, threshold, report)
    num = trials.setting.num_timesteps
    unit = resolution(num)
    if on_grid:
        found = boundaries_on_grid(trials.similarity, trials.artefact, num, threshold, unit)
    else:
        early = shortest_early(trials.similarity, num, threshold, unit)

        def may_try(late: int) -> bool:
            return trials.cost.large_generations + late / num <= budget

        late, is_limited = sufficient_late(trials.artefact, num, early, unit, may_try)
        found = Boundaries(early_steps=early, late_steps=late, late_is_limited=is_limited)
    return Calibration(
        setting=trials.setting,
        early_steps=found.early_steps,
        late_steps=found.late_steps,
        method="grid" if on_grid else "search",
        threshold=threshold,
        judged_by=similarity.name,
        artefact=artefact.name,
        late_is_limited=found.late_is_limited,
        cost=trials.cost,
        trials=tuple(trials.results.values()),
    )


class _Trials:
    """Large-only of every prompt, then any schedule beside it, each once."""

    def __init__(
        self,
        order: Order,
        similarity: Similarity,
        artefact: NamedSimilarity,
        threshold: float,
        report: Callable[[TrialResult], None],
    ) -> None:
        self._order = order
        self._judges = (similarity, artefact)
        self._threshold = threshold
        self._report = report
        self._large: list[Recording] = []
        self._references: list[Video] = []
        self._num_forwards = {"L": 0, "S": 0}
        self._flops = 0
        self._large_flops = 0
        self._kept_early = math.inf
        self._kept: list[Recording] = []
        self.results: dict[tuple[int, int], TrialResult] = {}
        with Blend(order.pipe, order.small, StageSchedule.named("LLL"), order.adapters) as blend:
            refuse_all_but_solvers(blend)
            self._small = blend.denoisers["S"]
            for number in range(len(order.prompts)):
                video, recording = self._generate(blend, number, [])
                self._references.append(video)
                self._large.append(recording)
            self.setting: CalibrationSetting = order.setting(blend)
        self._large_flops = self._flops

    @property
    def cost(self) -> SearchCost:
        num = len(self._order.prompts)
        return SearchCost(
            num_large_forwards=self._num_forwards["L"] / num,
            num_small_forwards=self._num_forwards["S"] / num,
            large_generations=self._flops / self._large_flops,
        )

    def similarity(self, early: int, late: int) -> float:
        return self._result(early, late).similarity

    def artefact(self, early: int, late: int) -> float:
        return self._result(early, late).artefact

    def _result(self, early: int, late: int) -> TrialResult:
        if (early, late) not in self.results:
            self.results[early, late] = self._try(early, late)
            self._report(self.results[early, late])
        return self.results[early, late]

    def _try(self, early: int, late: int) -> TrialResult:
        order, num_steps = self._order, self.setting.num_timesteps
        schedule = StageSchedule.named("LSL", early / num_steps, late / num_steps)
        judged: list[tuple[float, float]] = []
        recordings: list[Recording] = []
        with Blend(order.pipe, self._small, schedule, order.adapters) as blend:
            for number, reference in enumerate(self._references):
                shared = [self._large[number], *([self._kept[number]] if early == self._kept_early else [])]
                video, recording = self._generate(blend, number, shared)
                recordings.append(recording)
                similarity, artefact = (judge(video, reference) for judge in self._judges)
                judged.append((similarity, artefact))
        means = [statistics.fmean(values) for values in zip(*judged, strict=True)]
        if not all(map(math.isfinite, means)):
            raise FlowBlendError(
                f"at an early stage of {early} and a late stage of {late} steps the videos cannot be judged: "
                f"{self._judges[0].name} {means[0]}, {self._judges[1].name} {means[1]}. Do they hold numbers at all?"
            )
        # The shortest early stage that will do is the one whose late stages are tried next; others are not kept, for
        # recordings are large.
        if late == 0 and means[0] >= self._threshold and early < self._kept_early:
            self._kept_early, self._kept = early, recordings
        return TrialResult(early_steps=early, late_steps=late, similarity=means[0], artefact=means[1])

    def _generate(self, blend: Blend, number: int, shared: list[Recording]) -> tuple[Video, Recording]:
        with blend.recorded(shared) as recording:
            video = _video_of(self._order.generate(number, "np"))
        for call in blend.trace.generations[-1].calls[recording.num_replayed :]:
            self._num_forwards[call.step.denoiser] += 1
            self._flops += count_flops(blend, call.step.denoiser, call.inputs)
        return video, recording


def _video_of(result: Output) -> Video:
    """The first video of a pipeline's result, ``[F, H, W, 3]``; a still is a video of one frame."""
    return np.asarray(result.frames[0] if hasattr(result, "frames") else result.images[:1], dtype=np.float32)
