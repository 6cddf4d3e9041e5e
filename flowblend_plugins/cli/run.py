"""``flowblend run``: one video, or one still."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..contract.adapter import Adapter, arguments_set_by
from ..contract.traits import REENTRY_POLICIES, Composition
from ..errors import UsageError
from ..files.configuration import read_configuration
from ..files.video import read_image
from ..files.writing import prepare_output_folder, write_json_atomically
from ..manager import make_adapters
from ..pairs.open import OpenedPair, open_pair
from ..pairs.placement import Placement
from ..pairs.preset import PairPreset
from ..pairs.sources import refuse_absent
from ..schedule import AUTO, StageSchedule
from ..types import Keywords, Pipeline
from .call import Progress, generate, refuse_unknown_arguments, write_output
from .gain import Gain, gain_over, psnr_of, side_by_side
from .grouped import grouped
from .options import (
    AdapterOption,
    EarlyOption,
    FramesOption,
    GuidanceScaleOption,
    ImageOption,
    JsonOption,
    LargeOption,
    LateOption,
    OutOption,
    PairOption,
    PairScheduleOption,
    PixelsOption,
    PlacementOptions,
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
    from ..calibration.similarity import Video
    from ..trace.trace import Trace
    from ..types import Output

_CalibrationOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="For --schedule auto: what `flowblend calibrate boundaries` wrote.")
]
_ConfigurationOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Schedule and adapters as `flowblend plan` wrote them; --adapter adds more."),
]
_FpsOption = Annotated[float, typer.Option(min=0.1, max=1000.0, help="Frames a second of the video.")]
_ReentryOption = Annotated[
    str, typer.Option(help="When a denoiser returns, its cached state is forgotten (recompute) or used (keep).")
]
_DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Say which denoiser would answer when, and what adapters know of it, and stop."),
]
_CompareOption = Annotated[
    bool,
    typer.Option("--compare", help="Run large-only too: its time, PSNR to it, and both side by side in compare.mp4."),
]


@grouped
def run(
    ctx: typer.Context,
    placed: PlacementOptions,
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
    image: ImageOption = None,
    fps: _FpsOption = 8.0,
    reentry: _ReentryOption = "recompute",
    compare: _CompareOption = False,
    dry_run: _DryRunOption = False,
    plan: Annotated[bool, typer.Option("--plan", hidden=True, help="Old name of --dry-run.")] = False,
    out: OutOption = Path("out/run"),
    as_json: JsonOption = False,
) -> None:
    """Make one video (or still), and say what ran and what it gained over the large denoiser alone.

    DIR receives video.mp4 (image.png of a pipeline that makes stills) and run.json, which holds the schedule in steps,
    the gain, the trace of every denoiser call and FLOPs; with --compare also compare.mp4 (compare.png).

    Examples:

        flowblend run --prompt "a red circle moving left" --compare --out out/first

        flowblend run --schedule LSS --early 0.3 --dry-run

        flowblend run --schedule L:10,S:10,L:5 --adapter "unipc(num_inference_steps=25)"

        flowblend run --schedule auto --calibration boundaries.json

        flowblend run --configuration out/plan/plan.json

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
    from_where = _Sources(preset, large, small, text_encoder, placed.placement)
    stack = _Stack(from_where, stages, calibrated, adapters, adapter or [], reentry, num_steps)
    call = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "prompt": prompt, "image": image}
    call |= {"negative_prompt": negative_prompt, "height": height, "width": width, "num_frames": num_frames}
    if plan:
        typer.echo("flowblend: --plan is now --dry-run; `flowblend plan` computes a stack.", err=True)
    if dry_run or plan:
        stack.preview(call, as_json)
        return
    stack.generate(call, seed, fps, out, as_json, compare)


@dataclass(frozen=True)
class _Sources:
    """The pair that the options name."""

    preset: PairPreset | None
    large: str | None
    small: str | None
    text_encoder: str | None
    placement: Placement

    def __str__(self) -> str:
        return self.preset.name if self.preset is not None else str(self.large)

    def open(self) -> OpenedPair:
        return open_pair(self.preset, self.large, self.small, self.text_encoder, self.placement)

    def refuse_absent(self) -> None:
        """Tell of a misspelt path before torch is loaded."""
        preset = self.preset
        refuse_absent(
            self.large or (preset and preset.large), self.small or (preset and preset.small), self.text_encoder
        )

    def warn_of_unknown_words(self, prompt: str | None) -> None:
        """Name the words that an embedded pair, which was trained on few, cannot show."""
        known = self.preset.vocabulary if self.preset is not None else frozenset()
        unknown = [word for word in dict.fromkeys((prompt or "").split()) if word not in known]
        if known and unknown:
            typer.echo(
                f"flowblend: warning: the text encoder of {self} does not know "
                f"{', '.join(map(repr, unknown))}: nothing of it is shown. It knows {', '.join(sorted(known))}.",
                err=True,
            )


@dataclass(frozen=True)
class _Stack:
    """Everything that the options ask to be put on the pipeline, checked as far as it can be before loading."""

    pair: _Sources
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
            opened = self.pair.open()
            arguments = _call_arguments(opened, self.adapters, asked | {"prompt": asked["prompt"] or ""})
            with self._enabled(opened) as blend:
                planned = plan_blend(blend, self.num_steps, arguments)
        planned.show(as_json)

    def generate(self, asked: Keywords, seed: int, fps: float, out: Path, as_json: bool, compare: bool) -> None:
        """Make the video, and write it with the record of what ran."""
        steps = "" if self.num_steps is None else self._planned_unloaded(self.num_steps).steps  # told before loading
        self.pair.refuse_absent()
        prepare_output_folder(out)
        if not as_json:
            typer.echo(f"{self.pair}, {self.stages.text}{f': {steps}' if steps else ''}")
        self.pair.warn_of_unknown_words(asked["prompt"])
        progress = Progress(quiet=as_json)
        with progress.shown("loading"):
            opened = self.pair.open()
            arguments = _call_arguments(opened, self.adapters, asked)
            plain = _call_arguments(opened, (), asked)
            plain_timesteps = _count_timesteps(opened.pipeline)
            blend = self._enabled(opened, progress)
        with blend:
            num_steps = self.num_steps or _default_of(opened.pipeline, "num_inference_steps")
            planned = plan_blend(blend, num_steps, arguments) if num_steps is not None else None
            if planned is not None and not as_json:
                if not steps:  # until the pipeline was loaded, its steps or sigmas were not known
                    typer.echo(f"{self.stages.text}: {planned.steps}")
                planned.show_details()
                for reason in blend.foresee(**arguments).of(Composition.INERT):
                    typer.echo(f"declared inert: {reason}")
            result = generate(opened.pipeline, arguments, seed, progress)
            seconds = progress.seconds
        large = generate(opened.pipeline, plain, seed, progress, "large-only") if compare else None
        gains = self._gains(blend.trace, seconds, plain, plain_timesteps, opened, progress.seconds if large else None)
        kind, path = ("video", out / "video.mp4") if hasattr(result, "frames") else ("image", out / "image.png")
        compared = path.with_name(f"compare{path.suffix}")
        psnr = None if large is None else psnr_of(_pixels(result), _pixels(large))
        record = {
            kind: str(path),
            "pair": opened.name,
            "prompt": arguments["prompt"],
            "seed": seed,
            "schedule": self.stages.text,
            "steps": planned.steps if planned is not None else None,
            "adapters": self.specs,
            "seconds": round(seconds, 3),
            "gain": [asdict(gain) for gain in gains],
            "psnr_db": psnr if psnr is not None and math.isfinite(psnr) else None,
            "trace": blend.trace.to_dict(),
        }
        write_output(_pixels(result), path, fps)  # all that takes time is done, so the files appear together
        if large is not None:
            write_output(side_by_side(_pixels(large), _pixels(result)), compared, fps)
        write_json_atomically(out / "run.json", record)
        if as_json:
            typer.echo(json.dumps(record, indent=2))
            return
        typer.echo(blend.trace.summary())
        typer.echo("")
        for gain in gains:
            typer.echo(str(gain))
        if psnr is not None:
            told = "every pixel is the same" if math.isinf(psnr) else f"PSNR to large-only: {psnr:.1f} dB"
            typer.echo(f"{told}. Side by side, large-only on the left: {compared}")
        typer.echo(f"{path}: {arguments['prompt']!r}, {seconds:.1f} s. What ran is in {out / 'run.json'}.")
        if large is None:
            typer.echo("--compare runs large-only too: measured time, PSNR, and both side by side.")

    def _gains(
        self,
        trace: Trace,
        seconds: float,
        plain: Keywords,
        timesteps_for: Callable[[int], int],
        opened: OpenedPair,
        seconds_measured: float | None,
    ) -> list[Gain]:
        """Gain over the same call without FlowBlending, and over the pair's own number of steps."""
        own = opened.call_defaults.get("num_inference_steps") or _default_of(opened.pipeline, "num_inference_steps")
        steps = plain.get("num_inference_steps") or _default_of(opened.pipeline, "num_inference_steps")
        has_same_guidance = "guidance_scale" not in arguments_set_by(self.adapters)
        asked = {steps: "the same call without FlowBlending"}
        asked.setdefault(own, "large-only at the pair's own number of steps")
        return [
            gain_over(
                trace,
                seconds,
                against,
                number,
                timesteps_for(number),
                has_same_guidance=has_same_guidance,
                seconds_measured=seconds_measured if number == steps else None,
            )
            for number, against in asked.items()
            if number is not None and trace.last is not None and trace.last.calls
        ]

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
    if "image" in given:
        arguments["image"] = read_image(given["image"])
    refuse_unknown_arguments(opened.pipeline, given)
    return arguments


def _count_timesteps(pipeline: Pipeline) -> Callable[[int], int]:
    """The length of the sampler's list for a number of steps: those of order 2 call twice in all steps but the last."""
    order = getattr(pipeline.scheduler, "order", 1)
    return lambda steps: steps if order == 1 else order * steps - 1


def _pixels(result: Output) -> Video:
    """The first video, ``[F, H, W, 3]``, or the first still, of what :func:`generate` gave."""
    return (result.frames if hasattr(result, "frames") else result.images)[0]


def _default_of(pipeline: Pipeline, argument: str) -> int | None:
    """Default of an argument of the pipeline call; ``None`` if it has no such argument."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get(argument)
    return parameter.default if parameter is not None else None
