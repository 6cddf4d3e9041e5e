"""The command ``flowblend calibrate forecast``, which measures velocities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flowblend_plugins.cli.calibrate_options import PromptsFileOption, PromptsOption, calls_for, read_prompts
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


def forecast(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    steps: Annotated[
        int, typer.Option(min=2, help="Of each generation; some three times as many as will be sampled with.")
    ] = 60,
    guidance_scale: GuidanceScaleOption = None,
    prompt: PromptsOption = None,
    prompts_file: PromptsFileOption = None,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: FramesOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The JSON file for forecast(moments=FILE).")
    ] = Path("out/forecast.json"),
    as_json: JsonOption = False,
) -> None:
    """Measure how alike the large denoiser's velocities are from step to step, for a forecast that errs least.

    The large denoiser generates every prompt alone. FILE receives the inner products of its velocities at every two
    timesteps and guidance branches, the mean over the prompts. They serve any solver, number of steps and shift.

    Examples:

        flowblend calibrate forecast --prompts-file prompts.txt --out forecast.json

        flowblend calibrate forecast --large ./wan14b --prompt "a cat surfing" --prompt "a train" --steps 100
    """
    manager = ctx.obj
    preset = find_preset(manager, pair, large)
    prompts = read_prompts(prompt, prompts_file) or tuple(preset.example_prompts if preset else ())
    if not prompts:
        raise UsageError("--large has no example prompts. Say what to generate with --prompt, best several times.")
    prepare_output_folder(out.parent)
    opened = open_pair(manager, pair, large, None)
    opened.pipeline.set_progress_bar_config(disable=True)

    from .calibration import calibrate_forecast

    call = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
    calls = calls_for(opened, prompts, call, seed)
    moments = calibrate_forecast(opened.pipeline, calls=calls)
    record = moments.to_json()
    write_json_atomically(out, record)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    branches = ", ".join(str(branch) for branch in moments.branches)
    typer.echo(f"{len(prompts)} prompts, {len(moments.timesteps)} timesteps, guidance branches: {branches}")
    typer.echo(f"{out}: use it with --adapter \"forecast(moments='{out}')\".")
