"""Fidelity to large-only's videos, prompt by prompt, and what it says of all prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flowblend_plugins.hookspecs import Metric

from ..results.intervals import USUAL_SPREADS, Estimate, Spread, error_at, estimate_kept, estimate_mean
from ..results.matrix_results import BaselineResult, CellResult
from .bench import Videos
from .metrics import flicker
from .prompts import Judge


@dataclass
class Fidelity:
    """Figures of the videos of one cell, or of one denoiser alone; prompts are added in their order.

    Attributes:
        metrics: name to function of (video, large-only's video).
        judge: who says which captioned attributes are right; ``None`` where nobody can.
        usual: spreads over prompts of ``psnr_db``, ``ssim`` and ``right`` on this pair.
        values: of each metric, for each prompt.
        right, large_right, captioned: number of attributes, for each prompt.
    """

    metrics: Mapping[str, Metric]
    judge: Judge | None
    usual: Mapping[str, Spread] = field(default_factory=lambda: USUAL_SPREADS)
    values: dict[str, list[float]] = field(default_factory=dict)
    right: list[int] = field(default_factory=list)
    large_right: list[int] = field(default_factory=list)
    captioned: list[int] = field(default_factory=list)
    num_prompts: int = 0

    def add(self, videos: Videos, large: Videos) -> None:
        """Take in the videos of the next prompts, beside those of large-only.

        Metrics without a budget are of the first look alone, so that all cells have them on the same prompts.
        """
        known = {name: metric for name, metric in self.metrics.items() if name in self.usual or not self.num_prompts}
        for name, metric in known.items():
            self.values.setdefault(name, []).extend(each(name, metric, videos, large))
        if self.judge is not None:
            judged = self.judge.num_right(videos, self.num_prompts)
            self.right += [right for right, _ in judged]
            self.captioned += [captioned for _, captioned in judged]
            self.large_right += [right for right, _ in self.judge.num_right(large, self.num_prompts)]
        self.num_prompts += len(videos)

    def estimate(self, name: str, looks: Sequence[int]) -> Estimate | None:
        """A metric over the prompts with its interval, given that one may stop at any of these looks."""
        finite = _finite(self.values.get(name, []))
        return estimate_mean(finite, self._error(looks), self.usual[name]) if finite else None

    def estimate_kept(self, looks: Sequence[int]) -> Estimate | None:
        """Prompt alignment over large-only's, with its interval."""
        return (
            estimate_kept(self.right, self.large_right, self._error(looks), self.usual["right"]) if self.right else None
        )

    def spreads(self) -> dict[str, Spread]:
        """Spreads over prompts for the cells of this pair, where at least two prompts showed any."""
        finite = {name: _finite(self.values.get(name, [])) for name in self.usual}
        stds = {name: float(np.std(values, ddof=1)) for name, values in finite.items() if len(values) > 1}
        return {**self.usual, **{name: Spread(std) for name, std in stds.items() if std > 0.0}}

    def describe(self, result: CellResult | BaselineResult) -> None:
        """Write the means and standard deviations over the prompts into a result."""
        for name in self.metrics:
            mean, std = over_prompts(self.values.get(name, []))
            if name == "psnr_db":
                result.psnr_db, result.psnr_db_std = mean, std
            elif name == "ssim":
                result.ssim, result.ssim_std = mean, std
            elif mean is not None:
                result.metrics[name] = {"mean": mean, "std": std}
        if self.captioned:
            result.prompt_alignment = sum(self.right) / sum(self.captioned)

    def _error(self, looks: Sequence[int]) -> float:
        return error_at(list(looks).index(self.num_prompts), looks)


def describe_large(videos: Videos, judge: Judge | None, result: BaselineResult) -> None:
    """Describe large-only's own videos, which nothing is compared with."""
    if videos.shape[1] >= 3:
        result.metrics["flicker"] = {"mean": flicker(videos), "std": None}
    if judge is not None:
        result.prompt_alignment = judge.alignment(videos)
        result.frechet_distance = judge.frechet_distance(videos)


def each(name: str, metric: Metric, videos: Videos, wanted: Videos) -> list[float]:
    """The metric of every video.

    Raises:
        RuntimeError: it failed; says which.
    """
    try:
        return [float(metric(video, other)) for video, other in zip(videos, wanted, strict=True)]
    except Exception as error:
        raise RuntimeError(f"the metric {name!r} failed: {type(error).__name__}: {error}") from error


def over_prompts(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation over the prompts; neither infinite values (PSNR of equal videos) nor NaN (a
    metric that does not apply) are part of them."""
    finite = _finite(values)
    return (float(np.mean(finite)), float(np.std(finite))) if finite else (None, None)


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if np.isfinite(value)]
