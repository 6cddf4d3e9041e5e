"""The command ``flowblend calibrate mag-cache``, which measures magnitude ratios."""

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
    SmallOption,
    StepsOption,
    find_preset,
    open_pair,
)
from flowblend_plugins.errors import UsageError
from flowblend_plugins.files.writing import prepare_output_folder, write_json_atomically


def mag_cache(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    small: SmallOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    prompt: PromptsOption = None,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: FramesOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The JSON file for mag_cache(ratios=FILE).")
    ] = Path("out/mag_ratios.json"),
    as_json: JsonOption = False,
) -> None:
    """Measure the magnitude ratios that MagCache needs, of both denoisers of a pair.

    Each denoiser generates every prompt alone, in diffusers' calibration mode, which computes every step. FILE receives
    one ratio for each step, the mean over prompts and guidance branches. The ratios are of this number of steps: for
    another one, calibrate again.

    Examples:

        flowblend calibrate mag-cache --steps 20 --out ratios.json

        flowblend calibrate mag-cache --large ./wan14b --small ./wan1.3b --prompt "a cat surfing" --steps 50
    """
    manager = ctx.obj
    preset = find_preset(manager, pair, large)
    prompts = tuple(prompt or (preset.example_prompts if preset else ()))
    if not prompts:
        raise UsageError("--large has no example prompts. Say what to generate with --prompt.")
    prepare_output_folder(out.parent)
    opened = open_pair(manager, pair, large, small)
    opened.pipeline.set_progress_bar_config(disable=True)

    from .mag_calibration import calibrate_mag_ratios

    call = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
    calls = calls_for(opened, prompts, call, seed)
    ratios = calibrate_mag_ratios(opened.pipeline, opened.small, calls=calls, denoisers=opened.further)
    record = ratios.to_json()
    write_json_atomically(out, record)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    for letter, entry in ratios.denoisers.items():
        low, high = min(entry.ratios[1:], default=1.0), max(entry.ratios[1:], default=1.0)
        typer.echo(f"{letter} {entry.class_name}: ratios from {low:.4f} to {high:.4f} over {len(entry.ratios)} steps")
    typer.echo(f"{out}: use it with --adapter \"mag_cache(ratios='{out}')\".")
