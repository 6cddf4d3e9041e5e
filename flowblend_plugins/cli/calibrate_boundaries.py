"""The command ``flowblend calibrate boundaries``, which finds where stages meet."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..files.writing import prepare_output_folder, write_json_atomically
from ..manager import FlowblendPluginManager, metrics_by_name
from ..pairs.preset import PairPreset
from .calibrate_options import PromptsFileOption, PromptsOption, SolverOption, open_order, read_prompts
from .options import (
    FramesOption,
    GuidanceScaleOption,
    JsonOption,
    LargeOption,
    PairOption,
    PixelsOption,
    SeedOption,
    SmallOption,
    StepsOption,
    find_preset,
)

if TYPE_CHECKING:
    from ..calibration.calibration import Calibration, TrialResult

_SSIM, _ARTEFACT = "ssim", "high_frequency_error"


class Proxy(str, enum.Enum):
    """Measurements that may replace a search."""

    DIVERGENCE = "divergence"


def boundaries(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    small: SmallOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    adapter: SolverOption = None,
    prompt: PromptsOption = None,
    prompts_file: PromptsFileOption = None,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: FramesOption = None,
    seed: SeedOption = 0,
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
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The JSON file for --schedule auto --calibration FILE.")
    ] = Path("out/boundaries.json"),
    as_json: JsonOption = False,
) -> None:
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
    manager = ctx.obj
    if proxy is not None and (grid or similarity is not None):
        raise UsageError("--proxy makes no trials, so --grid and --similarity have no meaning. Leave them out.")
    prompts = read_prompts(prompt, prompts_file)
    prepare_output_folder(out.parent)
    preset = find_preset(manager, pair, large)
    call = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
    if proxy is not None:
        order = open_order(manager, pair, large, small, prompts, call, seed, adapter)

        from ..calibration.measuring import boundaries_by_divergence

        found = boundaries_by_divergence(order)
    else:
        judge, artefact = _judge(manager, preset, similarity), _artefact(manager)
        order = open_order(manager, pair, large, small, prompts, call, seed, adapter)

        from ..calibration.boundaries import search_boundaries

        found = search_boundaries(
            order,
            judge,
            artefact,
            threshold=threshold,
            budget=budget,
            on_grid=grid,
            report=_say_nothing if as_json else _say,
        )
    write_json_atomically(out, found.to_json())
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        typer.echo(_summary(found))
        typer.echo(f"{out}: use it with --schedule auto --calibration {out}")


def _judge(manager: FlowblendPluginManager, preset: PairPreset | None, asked: str | None) -> Any:
    """The similarity that was asked for; else the pair's own; else SSIM."""
    from ..calibration.similarity import FeatureSimilarity, NamedSimilarity

    if asked is not None and asked != _SSIM:
        return FeatureSimilarity(asked)
    if asked is None and preset is not None and preset.similarity is not None:
        return preset.similarity()
    return NamedSimilarity(_SSIM, _metric(manager, _SSIM))


def _artefact(manager: FlowblendPluginManager) -> Any:
    from ..calibration.similarity import NamedSimilarity

    return NamedSimilarity(_ARTEFACT, _metric(manager, _ARTEFACT))


def _metric(manager: FlowblendPluginManager, name: str) -> Any:
    known = metrics_by_name(manager)
    if name not in known:
        raise UsageError(
            f"no plugin gives the metric {name!r}; it comes with flowblend_compat_matrix. Is that left out by "
            "FLOWBLEND_BLOCK?"
        )
    return known[name]


def _say(trial: TrialResult) -> None:
    typer.echo(
        f"early {trial.early_steps}, late {trial.late_steps}: similarity {trial.similarity:.4f}, "
        f"{_ARTEFACT} {trial.artefact:.4f}"
    )


def _say_nothing(trial: TrialResult) -> None:
    del trial


def _summary(found: Calibration) -> str:
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
    return "\n".join(lines)
