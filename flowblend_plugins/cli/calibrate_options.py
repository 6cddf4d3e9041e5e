"""Options shared by the calibrate commands, and their group on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..contract.adapter import arguments_set_by
from ..errors import UsageError
from ..manager import FlowblendPluginManager, make_adapters
from .options import OpenedPair, find_preset, hide_progress_bars, open_pair

_GROUP = "calibrate"

PromptsOption = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="What to generate; may be repeated.  [default: the pair's examples]"),
]
PromptsFileOption = Annotated[
    Path | None, typer.Option("--prompts-file", metavar="FILE", help="A prompt on each line, after those of --prompt.")
]
SolverOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", help='A solver to sample with, as "name(option=value)".  [default: the pipeline\'s own]'),
]


def calibrate_group(app: typer.Typer) -> typer.Typer:
    """The group ``flowblend calibrate`` of an app, to which any plugin may add commands."""
    for group in app.registered_groups:
        if group.name == _GROUP and group.typer_instance is not None:
            return group.typer_instance
    made = typer.Typer(no_args_is_help=True, help="Measure a pair: where its stages meet, and what adapters must know.")
    app.add_typer(made, name=_GROUP)
    return made


def read_prompts(prompt: Sequence[str] | None, prompts_file: Path | None) -> tuple[str, ...]:
    """The prompts of both options.

    Raises:
        UsageError: the file cannot be read, or has none.
    """
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


def calls_for(opened: OpenedPair, prompts: Sequence[str], call: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Keyword arguments of a generation of latents for each prompt, the noise of each from the next seed.

    Args:
        opened: has what the options leave to the pair.
        prompts: what to generate.
        call: what the options say of the pipeline call; ``None`` leaves an argument to the pair.
        seed: of the first one's noise, which is drawn on the CPU.
    """
    import torch

    arguments = dict(opened.call_defaults) | {name: value for name, value in call.items() if value is not None}
    return [
        arguments
        | {"prompt": text, "generator": torch.Generator("cpu").manual_seed(seed + number), "output_type": "latent"}
        for number, text in enumerate(prompts)
    ]


def open_order(
    manager: FlowblendPluginManager,
    pair: str,
    large: str | None,
    small: str | None,
    prompts: tuple[str, ...],
    call: dict[str, Any],
    seed: int,
    adapters: Sequence[str] | None,
) -> Any:
    """Load the pair and say what to measure on it, as a :class:`flowblend_plugins.calibration.measuring.Order`.

    Args:
        call: what the options say of the pipeline call; ``None`` leaves an argument to the pair.

    Raises:
        UsageError: no prompt, no small denoiser, or a pair of more than two denoisers.
    """
    preset = find_preset(manager, pair, large)
    solvers = make_adapters(manager, adapters or ())
    prompts = prompts or (preset.example_prompts if preset else ())
    if not prompts:
        raise UsageError("this pair has no example prompts. Say what to generate with --prompt.")
    if small is None and preset is None:
        raise UsageError("--large was given without --small, and a calibration compares the two. Give --small too.")
    if preset is not None and preset.experts:
        raise UsageError(
            f"pair {preset.name!r} has further experts ({', '.join(preset.experts)}), and boundaries are searched "
            "between two denoisers only. Give its schedule by hand."
        )
    from ..calibration.measuring import Order

    hide_progress_bars()
    opened = open_pair(manager, pair, large, small)
    opened.pipeline.set_progress_bar_config(disable=True)
    given = {name: value for name, value in call.items() if value is not None}
    taken = arguments_set_by(solvers)
    defaults = {name: value for name, value in opened.call_defaults.items() if name not in taken}
    return Order(
        pipe=opened.pipeline,
        small=opened.small,
        prompts=prompts,
        call=defaults | given,
        pair=opened.name,
        seed=seed,
        adapters=solvers,
    )
