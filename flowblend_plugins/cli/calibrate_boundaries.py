"""The command ``flowblend calibrate boundaries``, which finds where stages meet."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..manager import FlowblendPluginManager, metrics_by_name
from ..pairs.preset import PairPreset
from .calibrate import Calibrated, CalibrationRequest, SolverOption, calibrate_command

if TYPE_CHECKING:
    from ..calibration.calibration import Calibration, TrialResult
    from ..calibration.similarity import NamedSimilarity, Similarity
    from ..hookspecs import Metric

_SSIM, _ARTEFACT = "ssim", "high_frequency_error"


class Proxy(str, enum.Enum):
    """Measurements that may replace a search."""

    DIVERGENCE = "divergence"


@calibrate_command("out/boundaries.json", "The JSON file for --schedule auto --calibration FILE.")
def boundaries(
    request: CalibrationRequest,
    *,
    adapter: SolverOption = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Similarity to large-only that the early stage must keep.")
    ] = 0.96,
    similarity: Annotated[
        str | None,
        typer.Option(
            help="What judges similarity: an image model such as DINOv2 or CLIP (hub id or folder), or ssim.  "
            "[default: the pair's own judge, else ssim]"
        ),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=1.0, help="Cost at which the search ends, in large-only generations of each prompt.")
    ] = 2.0,
    proxy: Annotated[
        Proxy | None, typer.Option(help="Read the boundaries off this measurement alone, without any trial.")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Try every candidate, at any cost.")] = False,
) -> Calibrated:
    """Find where the stages of a pair meet.

    The early stage is the shortest one for which LSS stays alike to large-only; the late stage is where the detail of
    LSL stops improving. The large denoiser generates every prompt once, and every trial starts from what that left
    behind. FILE receives the boundaries, what they were measured on, and every trial.

    Examples:

        flowblend calibrate boundaries --out boundaries.json

        flowblend calibrate boundaries --large ./wan14b --small ./wan1.3b --prompts-file prompts.txt --steps 50
        --similarity facebook/dinov2-base

        flowblend calibrate boundaries --proxy divergence
    """
    if proxy is not None and (grid or similarity is not None):
        raise UsageError("--proxy makes no trials, so --grid and --similarity have no meaning. Leave them out.")
    if proxy is not None:
        order = request.order(adapter)

        from ..calibration.measuring import boundaries_by_divergence

        found = boundaries_by_divergence(order)
    else:
        judge, artefact = _judge(request.manager, request.preset, similarity), _artefact(request.manager)
        order = request.order(adapter)

        from ..calibration.boundaries import search_boundaries

        found = search_boundaries(
            order,
            judge,
            artefact,
            threshold=threshold,
            budget=budget,
            on_grid=grid,
            report=lambda trial: request.say(_trial_line(trial)),
        )
    lines = [*_summary(found), f"{request.out}: use it with --schedule auto --calibration {request.out}"]
    return Calibrated(found.to_json(), lines)


def _judge(manager: FlowblendPluginManager, preset: PairPreset | None, asked: str | None) -> Similarity:
    """The similarity that was asked for; else the pair's own; else SSIM."""
    from ..calibration.similarity import FeatureSimilarity, NamedSimilarity

    if asked is not None and asked != _SSIM:
        return FeatureSimilarity(asked)
    if asked is None and preset is not None and preset.similarity is not None:
        return preset.similarity()
    return NamedSimilarity(_SSIM, _metric(manager, _SSIM))


def _artefact(manager: FlowblendPluginManager) -> NamedSimilarity:
    from ..calibration.similarity import NamedSimilarity

    return NamedSimilarity(_ARTEFACT, _metric(manager, _ARTEFACT))


def _metric(manager: FlowblendPluginManager, name: str) -> Metric:
    known = metrics_by_name(manager)
    if name not in known:
        raise UsageError(
            f"no plugin gives the metric {name!r}; it comes with flowblend_compat_matrix. Is that left out by "
            "FLOWBLEND_BLOCK?"
        )
    return known[name]


def _trial_line(trial: TrialResult) -> str:
    return (
        f"early {trial.early_steps}, late {trial.late_steps}: similarity {trial.similarity:.4f}, "
        f"{_ARTEFACT} {trial.artefact:.4f}"
    )


def _summary(found: Calibration) -> list[str]:
    num = found.setting.num_timesteps
    lines = [
        f"{found.schedule.describe(num)}: early {found.early_steps / num:.2f} and late {found.late_steps / num:.2f} of "
        f"{num} steps, by {found.method}"
    ]
    if found.judged_by is not None:
        lines.append(
            f"judged by {found.judged_by}, threshold {found.threshold:g}, over {len(found.setting.prompts)} prompts"
        )
    if found.late_is_limited:
        lines.append("the late stage was still improving where the budget ended; more may be worth it (--budget)")
    cost = found.cost
    lines.append(
        f"cost for each prompt: {cost.num_large_forwards:.0f} large and {cost.num_small_forwards:.0f} small forwards, "
        f"{cost.large_generations:.2f} large-only generations of FLOPs"
    )
    return lines
