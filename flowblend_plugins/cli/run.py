"""``flowblend run``: one video."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..blend import Blend, enable
from ..errors import FlowBlendError, UsageError
from ..manager import make_adapters
from ..markers import hookimpl
from ..router import REENTRY_POLICIES
from ..schedule import StageSchedule
from ..step import StepContext
from ..video import write_mp4
from .options import (
    AdapterOption,
    EarlyOption,
    GuidanceScaleOption,
    JsonOption,
    LargeOption,
    LateOption,
    OpenedPair,
    OutOption,
    PairOption,
    PromptOption,
    ScheduleOption,
    SeedOption,
    SmallOption,
    StepsOption,
    find_preset,
    open_pair,
    read_schedule,
)
from .output import prepare_output_folder, write_json_atomically

_DEFAULT_STEPS = 50


def run(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    small: SmallOption = None,
    schedule: ScheduleOption = "LSL",
    early: EarlyOption = None,
    late: LateOption = None,
    adapter: AdapterOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    seed: SeedOption = 0,
    prompt: PromptOption = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels (default: the pair's)")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels (default: the pair's)")] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames (default: the pair's).")] = None,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames a second of the video.")] = 8.0,
    reentry: Annotated[
        str, typer.Option(help="When a denoiser returns, its cached state is forgotten (recompute) or used (keep).")
    ] = "recompute",
    plan: Annotated[bool, typer.Option("--plan", help="Say which denoiser would answer when, and stop.")] = False,
    out: OutOption = Path("out/run"),
    as_json: JsonOption = False,
) -> None:
    """Make one video and say what ran.

    Examples:

        flowblend run --prompt "a red circle moving left" --out out/first

        flowblend run --schedule L:20,S:20,L:10 --adapter "unipc(num_inference_steps=50)"

        flowblend run --large ./wan14b --small ./wan1.3b --early 0.4 --late 0.2 --steps 50
    """
    manager = ctx.obj
    preset = find_preset(manager, pair, large)
    stages = read_schedule(schedule, early, late, preset)
    adapters = make_adapters(manager, adapter or ())
    if reentry not in REENTRY_POLICIES:
        raise UsageError(f"--reentry {reentry!r}: expected {' or '.join(REENTRY_POLICIES)}.")
    known_steps = steps or (preset.call_defaults.get("num_inference_steps") if preset else None) or _DEFAULT_STEPS
    if not adapters and not stages.needs_sigmas:
        stages.assignments(known_steps)  # a misfit is told before anything is loaded
    prepare_output_folder(out)

    opened = open_pair(manager, pair, large, small)
    progress = _Progress(quiet=as_json)
    with enable(opened.pipeline, opened.small, stages, adapters=adapters, reentry=reentry, plugins=[progress]) as blend:
        asked = {
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "height": height,
            "width": width,
            "num_frames": num_frames,
        }
        arguments = _call_arguments(opened, blend, asked)
        resolved = _resolve(stages, blend, arguments)
        if not as_json or plan:
            _show_plan(stages, resolved, as_json)
        if plan:
            return
        result = _generate(opened.pipeline, arguments, seed, progress)
        video = out / "video.mp4"
        write_mp4(result.frames[0], video, fps)
        record = {
            "video": str(video),
            "pair": opened.name,
            "prompt": arguments["prompt"],
            "seed": seed,
            "schedule": stages.text,
            "steps": resolved,
            "adapters": adapter or [],
            "seconds": round(progress.seconds, 3),
            "trace": blend.trace.to_dict(),
        }
        write_json_atomically(out / "run.json", record)
        if as_json:
            typer.echo(json.dumps(record, indent=2))
        else:
            typer.echo(blend.trace.summary())
            typer.echo(
                f"{video}: {arguments['prompt']!r}, {progress.seconds:.1f} s. What ran is in {out / 'run.json'}."
            )


def _call_arguments(opened: OpenedPair, blend: Blend, asked: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the pipeline call: what was asked, over what the pair is meant to be called with."""
    defaults = dict(opened.call_defaults)
    if any(getattr(adapter, "num_inference_steps", None) for adapter in blend.adapters):
        defaults.pop("num_inference_steps", None)  # the adapter sets it, unless the user asks for another number
    given = {name: value for name, value in asked.items() if value is not None}
    arguments = defaults | given
    if "prompt" not in arguments:
        if not opened.example_prompts:
            raise UsageError(f"{opened.name} has no example prompts. Say what to show with --prompt.")
        arguments["prompt"] = opened.example_prompts[0]
    accepted = inspect.signature(type(opened.pipeline).__call__).parameters
    unknown = [name for name in given if name not in accepted]
    if unknown:
        options = ", ".join("--steps" if n == "num_inference_steps" else f"--{n.replace('_', '-')}" for n in unknown)
        raise UsageError(f"{type(opened.pipeline).__name__} does not take {options}. Leave it out.")
    return arguments


def _resolve(stages: StageSchedule, blend: Blend, arguments: dict[str, Any]) -> str | None:
    """The schedule in steps; ``None`` where only the sampler's sigmas will tell."""
    if stages.needs_sigmas:
        return None
    counts = [getattr(adapter, "num_inference_steps", None) for adapter in blend.adapters]
    steps = next((count for count in counts if count), arguments.get("num_inference_steps", _DEFAULT_STEPS))
    return stages.describe(steps)


def _show_plan(stages: StageSchedule, resolved: str | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"schedule": stages.text, "steps": resolved}))
    else:
        typer.echo(f"{stages.text}: {resolved or 'by sigma; the sampler sets its sigmas when it runs'}")


def _generate(pipeline: Any, arguments: dict[str, Any], seed: int, progress: _Progress) -> Any:
    import torch

    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    try:
        with progress.shown():
            result = pipeline(**arguments, generator=generator, output_type="np")
    except (ValueError, TypeError) as error:
        if isinstance(error, FlowBlendError):
            raise
        raise UsageError(f"{type(pipeline).__name__} refuses this call: {error}") from error
    if not hasattr(result, "frames"):
        raise UsageError(f"{type(pipeline).__name__} makes no video. `flowblend run` serves video pipelines.")
    return result


class _Progress:
    """A plugin of the blend: a bar that says which denoiser is at work."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self.seconds = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=self._quiet) as self._bar:
            self._task = self._bar.add_task("preparing", total=None)
            started = time.perf_counter()
            yield
            self.seconds = time.perf_counter() - started

    @hookimpl
    def flowblend_denoiser_called(self, step: StepContext) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=step.step_index + 1,
                total=step.num_inference_steps,
                description=f"{step.stage.value:<12} {step.denoiser}",
            )
