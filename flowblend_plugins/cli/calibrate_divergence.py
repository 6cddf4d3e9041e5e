"""The command ``flowblend calibrate divergence``, which compares two denoisers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..files.writing import prepare_output_folder, write_json_atomically
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
)


def divergence(
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
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The JSON file that is written.")] = Path(
        "out/divergence.json"
    ),
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw it, as PNG or SVG by the file's ending.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how far apart the velocities of the two denoisers are at every step.

    The large denoiser generates every prompt alone, with the small one in its shadow: it is asked at every step and has
    no influence. FILE receives cosine and relative l2 distance for each step, of either guidance branch and after
    guidance, with mean and standard deviation over the prompts.

    Examples:

        flowblend calibrate divergence --steps 20 --out divergence.json --plot divergence.png

        flowblend calibrate divergence --large ./wan14b --small ./wan1.3b --prompts-file prompts.txt --steps 50
    """
    prompts = read_prompts(prompt, prompts_file)
    for path in (out, plot):
        if path is not None:
            prepare_output_folder(path.parent)
    if plot is not None:
        from ..calibration.drawing import check_drawable

        check_drawable(plot)
    call = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
    order = open_order(ctx.obj, pair, large, small, prompts, call, seed, adapter)

    from ..calibration.measuring import measure_divergence
    from ..calibration.plot import plot_as_text

    curve = measure_divergence(order)
    write_json_atomically(out, curve.to_json())
    if plot is not None:
        from ..calibration.drawing import draw

        draw(curve, plot)
    if as_json:
        typer.echo(json.dumps(curve.to_json(), indent=2))
        return
    typer.echo(plot_as_text(curve))
    typer.echo(f"{out}: all branches, with the spread over prompts.")
    if plot is not None:
        typer.echo(f"{plot}: the same, drawn.")
