"""``flowblend run``: one video, or one still."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..contract.adapter import Adapter, arguments_set_by
from ..contract.traits import REENTRY_POLICIES, Composition
from ..errors import UsageError
from ..files.configuration import read_configuration
from ..files.writing import prepare_output_folder, write_json_atomically
from ..manager import make_adapters
from ..pairs.open import OpenedPair, open_pair
from ..pairs.preset import PairPreset
from ..schedule import AUTO, StageSchedule
from ..types import Keywords, Pipeline
from .call import Progress, generate, write_output
from .options import (
    AdapterOption,
    EarlyOption,
    FramesOption,
    GuidanceScaleOption,
    JsonOption,
    LargeOption,
    LateOption,
    OutOption,
    PairOption,
    PairScheduleOption,
    PixelsOption,
    PromptOption,
    SeedOption,
    SmallOption,
    StepsOption,
    TextEncoderOption,
    find_preset,
    read_schedule,
)
from .plan import Plan, plan_blend, plan_unloaded

if TYPE_CHECKING:
    from ..blend import Blend
    from ..calibration.calibration import Calibration


_CalibrationOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="For --schedule auto: what `flowblend calibrate boundaries` wrote.")
]
_ConfigurationOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Schedule and adapters as `flowblend tune` wrote them; --adapter adds more."),
]
_FpsOption = Annotated[float, typer.Option(min=0.1, max=1000.0, help="Frames a second of the video.")]
_ReentryOption = Annotated[
    str, typer.Option(help="When a denoiser returns, its cached state is forgotten (recompute) or used (keep).")
]
_DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Say which denoiser would answer when, and what adapters know of it, and stop."),
]


def run(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    small: SmallOption = None,
    text_encoder: TextEncoderOption = None,
    schedule: PairScheduleOption = None,
    early: EarlyOption = None,
    late: LateOption = None,
    calibration: _CalibrationOption = None,
    configuration: _ConfigurationOption = None,
    adapter: AdapterOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    seed: SeedOption = 0,
    prompt: PromptOption = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: FramesOption = None,
    fps: _FpsOption = 8.0,
    reentry: _ReentryOption = "recompute",
    dry_run: _DryRunOption = False,
    plan: Annotated[bool, typer.Option("--plan", hidden=True, help="Old name of --dry-run.")] = False,
    out: OutOption = Path("out/run"),
    as_json: JsonOption = False,
) -> None:
    """Make one video (or still) and say what ran.

    DIR receives video.mp4 (image.png of a pipeline that makes stills) and run.json, which holds the schedule in steps,
    the trace of every denoiser call and FLOPs.

    Examples:

        flowblend run --prompt "a red circle moving left" --out out/first

        flowblend run --schedule LSS --early 0.3 --dry-run

        flowblend run --schedule L:10,S:10,L:5 --adapter "unipc(num_inference_steps=25)"

        flowblend run --schedule auto --calibration boundaries.json

        flowblend run --configuration out/tune/tuned.json

        flowblend run --large ./wan14b --small ./wan1.3b --prompt "a cat surfing" --steps 50
    """
    preset = find_preset(ctx.obj, pair, large)
    if configuration is not None:
        if schedule is not None:
            raise UsageError(f"--configuration {configuration} has a schedule of its own. Leave --schedule out.")
        found = read_configuration(configuration, preset.name if preset is not None else None)
        schedule, adapter = found["schedule"], [*found["adapters"], *(adapter or ())]
    calibrated = _read_calibration(schedule, early, late, calibration)
    stages = calibrated.schedule if calibrated else read_schedule(schedule, early, late, preset)
    adapters = make_adapters(ctx.obj, adapter or ())
    if reentry not in REENTRY_POLICIES:
        raise UsageError(f"--reentry {reentry!r}: expected {' or '.join(REENTRY_POLICIES)}.")
    if small is None and preset is None and "S" in stages.letters:
        raise UsageError(f"--large was given without --small, and schedule {stages.text} calls S. Give --small too.")
    num_steps = _count_steps(steps, adapters, preset)
    stack = _Stack(
        (preset, large, small, text_encoder), stages, calibrated, adapters, adapter or [], reentry, num_steps
    )
    call = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "prompt": prompt}
    call |= {"negative_prompt": negative_prompt, "height": height, "width": width, "num_frames": num_frames}
    if plan:
        typer.echo("flowblend: --plan is now --dry-run; `flowblend plan` computes a stack.", err=True)
    if dry_run or plan:
        stack.preview(call, as_json)
        return
    stack.generate(call, seed, fps, out, as_json)


@dataclass(frozen=True)
class _Stack:
    """Everything that the options ask to be put on the pipeline, checked as far as it can be before loading."""

    pair: tuple[PairPreset | None, str | None, str | None, str | None]
    stages: StageSchedule
    calibrated: Calibration | None
    adapters: Sequence[Adapter]
    specs: list[str]
    reentry: str
    num_steps: int | None

    def preview(self, asked: Keywords, as_json: bool) -> None:
        """Show which denoiser would answer when; the pair is loaded only where the plan depends on it."""
        if self.num_steps is None:
            raise UsageError("--dry-run: the number of steps is not known before --large is loaded. Give --steps.")
        planned = self._planned_unloaded(self.num_steps)
        # What goes by sigmas or is read off the denoisers needs them; without that nothing is loaded.
        plans_ahead = any(
            type(one).plan is not Adapter.plan or one.traits_with_options().changes_timesteps for one in self.adapters
        )
        if plans_ahead or self.stages.needs_sigmas:
            opened = open_pair(*self.pair)
            arguments = _call_arguments(opened, self.adapters, asked | {"prompt": asked["prompt"] or ""})
            with self._enabled(opened) as blend:
                planned = plan_blend(blend, self.num_steps, arguments)
        planned.show(as_json)

    def generate(self, asked: Keywords, seed: int, fps: float, out: Path, as_json: bool) -> None:
        """Make the video, and write it with the record of what ran."""
        if self.num_steps is not None:
            self._planned_unloaded(self.num_steps)  # a misfit is told before anything is loaded
        prepare_output_folder(out)
        opened = open_pair(*self.pair)
        arguments = _call_arguments(opened, self.adapters, asked)
        progress = Progress(quiet=as_json)
        with self._enabled(opened, progress) as blend:
            num_steps = self.num_steps or _default_of(opened.pipeline, "num_inference_steps")
            planned = plan_blend(blend, num_steps, arguments) if num_steps is not None else None
            if planned is not None and not as_json:
                planned.show()
                for reason in blend.foresee(**arguments).of(Composition.INERT):
                    typer.echo(f"declared inert: {reason}")
            result = generate(opened.pipeline, arguments, seed, progress)
            kind, path = ("video", out / "video.mp4") if hasattr(result, "frames") else ("image", out / "image.png")
            record = {
                kind: str(path),
                "pair": opened.name,
                "prompt": arguments["prompt"],
                "seed": seed,
                "schedule": self.stages.text,
                "steps": planned.steps if planned is not None else None,
                "adapters": self.specs,
                "seconds": round(progress.seconds, 3),
                "trace": blend.trace.to_dict(),
            }
            write_output(result, path, fps)  # all that takes time is done, so the two files appear together
            write_json_atomically(out / "run.json", record)
            if as_json:
                typer.echo(json.dumps(record, indent=2))
                return
            typer.echo(blend.trace.summary())
            typer.echo(f"{path}: {arguments['prompt']!r}, {progress.seconds:.1f} s. What ran is in {out / 'run.json'}.")

    def _planned_unloaded(self, num_steps: int) -> Plan:
        planned = plan_unloaded(self.stages, num_steps, self.adapters)
        if self.calibrated is not None:
            self.calibrated.refuse_other_steps(planned.num_timesteps)
        return planned

    def _enabled(self, opened: OpenedPair, *plugins: object) -> Blend:
        from ..api import enable

        return enable(
            opened.pipeline,
            opened.small,
            AUTO if self.calibrated else self.stages,
            calibration=self.calibrated,
            adapters=self.adapters,
            reentry=self.reentry,
            denoisers=opened.further,
            plugins=plugins,
        )


def _read_calibration(
    schedule: str | None, early: float | None, late: float | None, path: Path | None
) -> Calibration | None:
    """The calibration of ``--schedule auto``; ``None`` for any other schedule."""
    if schedule != AUTO:
        if path is not None:
            raise UsageError(f"--calibration {path} goes with --schedule auto. Add that, or leave it out.")
        return None
    if path is None:
        raise UsageError("--schedule auto needs --calibration: a file that `flowblend calibrate boundaries` wrote.")
    if early is not None or late is not None:
        raise UsageError("--schedule auto has the boundaries of its calibration. Leave --early and --late out.")
    from ..calibration.calibration import Calibration

    return Calibration.load(path)


def _count_steps(steps: int | None, adapters: Sequence[Adapter], preset: PairPreset | None) -> int | None:
    """The number of steps that the options, an adapter or the pair asks for; ``None`` if it is left to the pipeline."""
    for adapter in adapters:
        count = getattr(adapter, "num_inference_steps", None)
        if count is not None and steps is not None and count != steps:
            raise UsageError(f"--steps {steps}, but {adapter.name} has num_inference_steps={count}. Leave one out.")
        steps = steps if count is None else count
    return steps or (preset.call_defaults.get("num_inference_steps") if preset else None)


def _call_arguments(opened: OpenedPair, adapters: Sequence[Adapter], asked: Keywords) -> Keywords:
    """The keyword arguments of the pipeline call: what was asked, over what the pair is meant to be called with."""
    set_by_adapters = arguments_set_by(adapters)
    defaults = {name: value for name, value in opened.call_defaults.items() if name not in set_by_adapters}
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


def _default_of(pipeline: Pipeline, argument: str) -> Any:
    """Default of an argument of the pipeline call; ``None`` if it has no such argument."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get(argument)
    return parameter.default if parameter is not None else None
