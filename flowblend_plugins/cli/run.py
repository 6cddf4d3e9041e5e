"""``flowblend run``: one video, or one still."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
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
    find_preset,
    read_schedule,
)
from .plan import Plan, plan_blend, plan_unloaded

if TYPE_CHECKING:
    from ..calibration.calibration import Calibration


def run(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    small: SmallOption = None,
    schedule: PairScheduleOption = None,
    early: EarlyOption = None,
    late: LateOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For --schedule auto: what `flowblend calibrate boundaries` wrote."),
    ] = None,
    configuration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Schedule and adapters as `flowblend tune` wrote them; --adapter adds more."),
    ] = None,
    adapter: AdapterOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    seed: SeedOption = 0,
    prompt: PromptOption = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: FramesOption = None,
    fps: Annotated[float, typer.Option(min=0.1, max=1000.0, help="Frames a second of the video.")] = 8.0,
    reentry: Annotated[
        str, typer.Option(help="When a denoiser returns, its cached state is forgotten (recompute) or used (keep).")
    ] = "recompute",
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say which denoiser would answer when, and what adapters know of it, and stop."),
    ] = False,
    out: OutOption = Path("out/run"),
    as_json: JsonOption = False,
) -> None:
    """Make one video (or still) and say what ran.

    DIR receives video.mp4 (image.png of a pipeline that makes stills) and run.json, which holds the schedule in steps,
    the trace of every denoiser call and FLOPs.

    Examples:

        flowblend run --prompt "a red circle moving left" --out out/first

        flowblend run --schedule LSS --early 0.3 --plan

        flowblend run --schedule L:10,S:10,L:5 --adapter "unipc(num_inference_steps=25)"

        flowblend run --schedule auto --calibration boundaries.json

        flowblend run --configuration out/tune/tuned.json

        flowblend run --large ./wan14b --small ./wan1.3b --prompt "a cat surfing" --steps 50
    """
    manager = ctx.obj
    preset = find_preset(manager, pair, large)
    if configuration is not None:
        if schedule is not None:
            raise UsageError(f"--configuration {configuration} has a schedule of its own. Leave --schedule out.")
        found = read_configuration(configuration, preset.name if preset is not None else None)
        schedule, adapter = found["schedule"], [*found["adapters"], *(adapter or ())]
    calibrated = _read_calibration(schedule, early, late, calibration)
    stages = calibrated.schedule if calibrated else read_schedule(schedule, early, late, preset)
    adapters = make_adapters(manager, adapter or ())
    if reentry not in REENTRY_POLICIES:
        raise UsageError(f"--reentry {reentry!r}: expected {' or '.join(REENTRY_POLICIES)}.")
    if small is None and preset is None and "S" in stages.letters:
        raise UsageError(f"--large was given without --small, and schedule {stages.text} calls S. Give --small too.")
    num_steps = _count_steps(steps, adapters, preset)
    if plan:
        if num_steps is None:
            raise UsageError("--plan: the number of steps is not known before --large is loaded. Give --steps.")
        planned = plan_unloaded(stages, num_steps, adapters)
        if calibrated is not None:
            calibrated.refuse_other_steps(planned.num_timesteps)
        # What goes by sigmas or is read off the denoisers needs them; without that nothing is loaded.
        plans_ahead = any(type(one).plan is not Adapter.plan or one.traits.changes_timesteps for one in adapters)
        if plans_ahead or stages.needs_sigmas:
            planned = _plan_loaded((preset, large, small), stages, adapters, reentry, num_steps, calibrated)
        planned.show(as_json)
        return
    if num_steps is not None:
        foreseen = plan_unloaded(stages, num_steps, adapters)  # a misfit is told before anything is loaded
        if calibrated is not None:
            calibrated.refuse_other_steps(foreseen.num_timesteps)
    prepare_output_folder(out)

    from ..api import enable

    opened = open_pair(preset, large, small)
    asked = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
    arguments = _call_arguments(opened, adapters, asked)
    progress = Progress(quiet=as_json)
    with enable(
        opened.pipeline,
        opened.small,
        AUTO if calibrated else stages,
        calibration=calibrated,
        adapters=adapters,
        reentry=reentry,
        denoisers=opened.further,
        plugins=[progress],
    ) as blend:
        num_steps = num_steps or _default_of(opened.pipeline, "num_inference_steps")
        planned = plan_blend(blend, num_steps) if num_steps is not None else None
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
            "schedule": stages.text,
            "steps": planned.steps if planned is not None else None,
            "adapters": adapter or [],
            "seconds": round(progress.seconds, 3),
            "trace": blend.trace.to_dict(),
        }
        write_output(result, path, fps)  # all that takes time is done, so the two files appear together
        write_json_atomically(out / "run.json", record)
        if as_json:
            typer.echo(json.dumps(record, indent=2))
        else:
            typer.echo(blend.trace.summary())
            typer.echo(f"{path}: {arguments['prompt']!r}, {progress.seconds:.1f} s. What ran is in {out / 'run.json'}.")


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


def _call_arguments(opened: OpenedPair, adapters: Sequence[Adapter], asked: dict[str, Any]) -> dict[str, Any]:
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


def _default_of(pipeline: Any, argument: str) -> Any:
    """Default of an argument of the pipeline call; ``None`` if it has no such argument."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get(argument)
    return parameter.default if parameter is not None else None


def _plan_loaded(
    pair: tuple[PairPreset | None, str | None, str | None],
    stages: StageSchedule,
    adapters: Sequence[Adapter],
    reentry: str,
    num_steps: int,
    calibration: Calibration | None,
) -> Plan:
    from ..api import enable

    opened = open_pair(*pair)
    with enable(
        opened.pipeline,
        opened.small,
        AUTO if calibration else stages,
        calibration=calibration,
        adapters=adapters,
        reentry=reentry,
        denoisers=opened.further,
    ) as blend:
        return plan_blend(blend, num_steps)
