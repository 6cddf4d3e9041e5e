"""Calibrate commands: the options and the steps they share, declared once, and their group on the command line."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..contract.adapter import arguments_set_by
from ..errors import FlowBlendError, UsageError
from ..files.writing import prepare_output_folder, write_json_atomically
from ..manager import FlowblendPluginManager, make_adapters
from ..pairs.open import OpenedPair, hide_progress_bars, open_pair
from ..pairs.preset import PairPreset
from ..types import JsonView, Keywords, KeywordsView
from . import options
from .options import find_preset

if TYPE_CHECKING:
    from ..calibration.measuring import Order

_GROUP = "calibrate"

SolverOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", help='A solver to sample with, as "name(option=value)".  [default: the pipeline\'s own]'),
]
_PromptsOption = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="What to generate; may be repeated.  [default: the pair's examples]"),
]
_PromptsFileOption = Annotated[
    Path | None, typer.Option("--prompts-file", metavar="FILE", help="A prompt on each line, after those of --prompt.")
]
_SHARED: dict[str, tuple[object, object]] = {  # option to its annotation and default
    "pair": (options.PairOption, "reference"),
    "large": (options.LargeOption, None),
    "small": (options.SmallOption, None),
    "steps": (options.StepsOption, None),
    "guidance_scale": (options.GuidanceScaleOption, None),
    "prompt": (_PromptsOption, None),
    "prompts_file": (_PromptsFileOption, None),
    "height": (options.PixelsOption, None),
    "width": (options.PixelsOption, None),
    "num_frames": (options.FramesOption, None),
    "seed": (options.SeedOption, 0),
}
_CALL_OPTIONS = {"steps": "num_inference_steps"} | {n: n for n in ("guidance_scale", "height", "width", "num_frames")}


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """Generations that a calibrate command is asked to measure.

    Attributes:
        manager: the plugins of this command line.
        preset: the registered pair; ``None`` where ``--large`` replaces it.
        large, small: as the options give them.
        prompts: what to generate, at least one.
        call: arguments of the pipeline call that the options give; the others are left to the pair.
        seed: of the first prompt's noise; each further prompt has the next one.
        out: where the result will be written.
        as_json: the result is printed as JSON, and nothing else is.
    """

    manager: FlowblendPluginManager
    preset: PairPreset | None
    large: str | None
    small: str | None
    prompts: tuple[str, ...]
    call: KeywordsView
    seed: int
    out: Path
    as_json: bool

    def say(self, line: str) -> None:
        """Tell the user how far the work is."""
        if not self.as_json:
            typer.echo(line)

    def open(self) -> OpenedPair:
        """Load the pair of the options. Raises ``PairError`` where it cannot be loaded."""
        hide_progress_bars()
        opened = open_pair(self.preset, self.large, self.small)
        opened.pipeline.set_progress_bar_config(disable=True)
        return opened

    def calls(self, opened: OpenedPair) -> list[Keywords]:
        """Keyword arguments of one generation of latents for each prompt; the noise is drawn on the CPU."""
        import torch

        return [
            {
                **opened.call_defaults,
                **self.call,
                "prompt": text,
                "generator": torch.Generator("cpu").manual_seed(self.seed + number),
                "output_type": "latent",
            }
            for number, text in enumerate(self.prompts)
        ]

    def order(self, adapters: Sequence[str] | None) -> Order:
        """Load the pair and say what to measure on its two denoisers, sampled by these solvers.

        Raises:
            UsageError: there is no small denoiser, or the pair has more than two denoisers.
        """
        solvers = make_adapters(self.manager, adapters or ())
        if self.small is None and self.preset is None:
            raise UsageError("--large was given without --small, and a calibration compares the two. Give --small too.")
        if self.preset is not None and self.preset.experts:
            raise UsageError(
                f"pair {self.preset.name!r} has further experts ({', '.join(self.preset.experts)}), and boundaries are "
                "searched between two denoisers only. Give its schedule by hand."
            )
        from ..calibration.measuring import Order

        opened, taken = self.open(), arguments_set_by(solvers)
        defaults = {name: value for name, value in opened.call_defaults.items() if name not in taken}
        return Order(
            pipe=opened.pipeline,
            small=opened.small,
            prompts=self.prompts,
            call=defaults | dict(self.call),
            pair=opened.name,
            seed=self.seed,
            adapters=solvers,
        )


@dataclass(frozen=True)
class Calibrated:
    """Result of a calibrate command.

    Attributes:
        record: the JSON object that is written and, with ``--json``, printed.
        lines: the same in words; the last ones say how to use the file.
        failure: raised at the end, for a part that could not be measured.
        is_useful: whether there is anything to write.
    """

    record: JsonView
    lines: Sequence[str]
    failure: FlowBlendError | None = None
    is_useful: bool = True


def calibrate_command(
    out: str, out_help: str, without: Sequence[str] = ()
) -> Callable[[Callable[..., Calibrated]], Callable[..., None]]:
    """Make a ``flowblend calibrate`` command of a function that measures.

    The function gets a :class:`CalibrationRequest` and, by keyword, the options that its own signature adds to the
    shared ones (or replaces, such as ``steps``). Its docstring is the command's help.

    Args:
        out: the default of ``--out``.
        out_help: help of ``--out``.
        without: shared options that have no meaning here.
    """
    out_option = Annotated[Path, typer.Option("--out", metavar="FILE", help=out_help)]

    def decorate(measure: Callable[..., Calibrated]) -> Callable[..., None]:
        hints = typing.get_type_hints(measure, include_extras=True)
        own = {
            name: (hints[name], parameter.default)
            for name, parameter in list(inspect.signature(measure).parameters.items())[1:]
        }
        shared = {name: option for name, option in _SHARED.items() if name not in (*own, *without)}
        written = {"out": (out_option, Path(out)), "as_json": (options.JsonOption, False)}

        @functools.wraps(measure)
        def command(ctx: typer.Context, **given: Any) -> None:
            request = _request(ctx.obj, {name: given.get(name) for name in (*shared, *written)})
            result = measure(request, **{name: given[name] for name in own})
            if result.is_useful:
                write_json_atomically(request.out, result.record)
            for line in [json.dumps(result.record, indent=2)] if request.as_json else result.lines:
                typer.echo(line)
            if result.failure is not None:
                raise result.failure

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)] + [
            inspect.Parameter(name, keyword, default=default, annotation=annotation)
            for name, (annotation, default) in (shared | own | written).items()
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def calibrate_group(app: typer.Typer) -> typer.Typer:
    """The group ``flowblend calibrate`` of an app, to which any plugin may add commands."""
    for group in app.registered_groups:
        if group.name == _GROUP and group.typer_instance is not None:
            return group.typer_instance
    made = typer.Typer(no_args_is_help=True, help="Measure a pair: where its stages meet, and what adapters must know.")
    app.add_typer(made, name=_GROUP)
    return made


def _request(manager: FlowblendPluginManager, given: KeywordsView) -> CalibrationRequest:
    """Check what can be checked before anything is loaded."""
    preset = find_preset(manager, given["pair"], given["large"])
    prompts = _read_prompts(given["prompt"], given["prompts_file"]) or (preset.example_prompts if preset else ())
    if not prompts:
        raise UsageError("--large has no example prompts. Say what to generate with --prompt, best several times.")
    prepare_output_folder(given["out"].parent)
    call = {argument: given.get(option) for option, argument in _CALL_OPTIONS.items()}
    return CalibrationRequest(
        manager=manager,
        preset=preset,
        large=given["large"],
        small=given.get("small"),
        prompts=prompts,
        call={name: value for name, value in call.items() if value is not None},
        seed=given["seed"],
        out=given["out"],
        as_json=given["as_json"],
    )


def _read_prompts(prompt: Sequence[str] | None, prompts_file: Path | None) -> tuple[str, ...]:
    """The prompts of both options. Raises ``UsageError`` where the file cannot be read, or has none."""
    prompts = list(prompt or ())
    if prompts_file is not None:
        try:
            lines = prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompts-file {prompts_file} cannot be read as text: {error}.") from error
        prompts += [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise UsageError(f"--prompts-file {prompts_file} has no prompts. Write one on each line.")
    return tuple(prompts)
