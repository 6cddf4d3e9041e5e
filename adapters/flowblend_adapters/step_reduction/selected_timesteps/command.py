"""The command ``flowblend calibrate timesteps``, which selects noise levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flowblend_plugins.cli.calibrate_options import PromptsOption, calls_for
from flowblend_plugins.cli.options import (
    FramesOption,
    GuidanceScaleOption,
    JsonOption,
    LargeOption,
    PairOption,
    PixelsOption,
    SeedOption,
    find_preset,
    open_pair,
)
from flowblend_plugins.errors import UsageError
from flowblend_plugins.files.writing import prepare_output_folder, write_json_atomically


def timesteps(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    steps: Annotated[
        list[int] | None,
        typer.Option("--steps", min=1, help="A number of steps to select for; may be repeated.  [default: 8, 12, 20]"),
    ] = None,
    dense_steps: Annotated[
        int, typer.Option(min=2, help="Steps of the dense run; the selected noise levels are among its own.")
    ] = 60,
    guidance_scale: GuidanceScaleOption = None,
    prompt: PromptsOption = None,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: FramesOption = None,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The JSON file for unipc(timesteps=FILE).")] = Path(
        "out/timesteps.json"
    ),
    as_json: JsonOption = False,
) -> None:
    """Select the noise levels to sample at, from one dense run of the large denoiser for each prompt.

    The dense runs take small Euler steps. FILE receives, for each number of steps, the noise levels between which an
    Euler step errs least on what was seen there. Solvers that take a list of noise levels take the file: unipc,
    flow_euler.

    Examples:

        flowblend calibrate timesteps --steps 8 --steps 12 --out timesteps.json

        flowblend calibrate timesteps --large ./wan14b --prompt "a cat surfing" --dense-steps 50 --steps 20
    """
    manager = ctx.obj
    preset = find_preset(manager, pair, large)
    prompts = tuple(prompt or (preset.example_prompts if preset else ()))
    counts = sorted(set(steps or (8, 12, 20)))
    if not prompts:
        raise UsageError("--large has no example prompts. Say what to generate with --prompt.")
    if counts[-1] > dense_steps:
        raise UsageError(
            f"--steps {counts[-1]} of --dense-steps {dense_steps}: select fewer steps than the dense run has."
        )
    prepare_output_folder(out.parent)
    opened = open_pair(manager, pair, large, None)
    opened.pipeline.set_progress_bar_config(disable=True)

    from .dense_run import select_timesteps

    call = {"guidance_scale": guidance_scale, "height": height, "width": width, "num_frames": num_frames}
    calls = calls_for(opened, prompts, call, seed)
    selected = select_timesteps(opened.pipeline, calls=calls, num_dense_steps=dense_steps, num_steps=counts)
    record = selected.to_json()
    write_json_atomically(out, record)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    for count, sigmas in selected.selections.items():
        typer.echo(f"{count} steps: {', '.join(f'{sigma:.3g}' for sigma in sigmas)}")
    typer.echo(f"{out}: use it with --adapter \"unipc(timesteps='{out}', num_inference_steps={counts[0]})\".")
