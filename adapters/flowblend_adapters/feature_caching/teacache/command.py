"""The command ``flowblend calibrate teacache``, which fits coefficients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flowblend_plugins.cli.calibrate_options import PromptsOption
from flowblend_plugins.cli.options import (
    GuidanceScaleOption,
    JsonOption,
    LargeOption,
    PairOption,
    PixelsOption,
    SeedOption,
    SmallOption,
    find_preset,
    open_pair,
)
from flowblend_plugins.errors import UsageError
from flowblend_plugins.files.writing import prepare_output_folder, write_json_atomically


def teacache(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    small: SmallOption = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            "--steps",
            min=1,
            help="Number of inference steps; may be repeated, the main one first.  [default: the pair's]",
        ),
    ] = None,
    guidance_scale: GuidanceScaleOption = None,
    prompt: PromptsOption = None,
    seed: SeedOption = 0,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="[default: the pair's]")] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The JSON file for teacache(coefficients=FILE).")
    ] = Path("out/teacache.json"),
    as_json: JsonOption = False,
) -> None:
    """Fit TeaCache's coefficients to both denoisers of a pair.

    Each denoiser generates every prompt alone and computes every step. FILE receives a polynomial of degree 4 for each
    of its signals, with the quality of the fit, the domain it holds on, and thresholds that reuse a third and half of
    the calls. A poor fit is refused, and exit code 1 says so; the good ones are written.

    Examples:

        flowblend calibrate teacache --steps 20 --steps 50 --out coefficients.json

        flowblend calibrate teacache --large ./wan14b --small ./wan5b --prompt "a cat surfing" --prompt "rain at night"
    """
    manager = ctx.obj
    preset = find_preset(manager, pair, large)
    prompts = tuple(prompt or (preset.example_prompts if preset else ()))
    if not prompts:
        raise UsageError("--large has no example prompts. Say what to generate with --prompt, best several times.")
    prepare_output_folder(out.parent)
    opened = open_pair(manager, pair, large, small)
    call = dict(opened.call_defaults)
    asked = {"guidance_scale": guidance_scale, "height": height, "width": width, "num_frames": num_frames}
    call |= {name: value for name, value in asked.items() if value is not None}
    counts = [{"num_inference_steps": count} for count in steps or ()] or [{}]
    opened.pipeline.set_progress_bar_config(disable=True)

    from .calibration import PoorFitError, fit_denoiser, record_changes, refuse_poor
    from .fits import fits_to_json

    def generating(text: str, number: int, count: dict[str, int]) -> Any:
        def generate(pipeline: Any) -> None:
            import torch

            generator = torch.Generator("cpu").manual_seed(seed + number)
            pipeline(**(call | count | {"prompt": text}), generator=generator, output_type="latent")

        return generate

    generations = [generating(text, number, count) for count in counts for number, text in enumerate(prompts)]
    fits, refusals = [], []
    for letter in ["L", *(["S"] if opened.small is not None else []), *opened.further]:
        denoiser, trajectories = record_changes(opened.pipeline, opened.small, letter, generations, opened.further)
        for fit in fit_denoiser(denoiser, trajectories):
            try:
                refuse_poor(letter, fit)
                fits.append(fit)
            except PoorFitError as error:
                refusals.append(str(error))
            if not as_json:
                low, high = fit.estimate.polynomial.domain
                typer.echo(
                    f"{letter} {fit.signal}: degree {fit.degree}, R^2 {fit.r_squared:.3f} over {fit.num_points} points,"
                    f" domain {low:.4g} to {high:.4g}, threshold {fit.estimate.slow:g} slow, {fit.estimate.fast:g} fast"
                )
    record = fits_to_json(fits, pair=opened.name, prompts=list(prompts), seed=seed)
    if fits:
        write_json_atomically(out, record)
    if as_json:
        typer.echo(json.dumps(record | {"refused": refusals}, indent=2))
    elif fits:
        typer.echo(f"{out}: {len(fits)} fits. Use them with --adapter \"teacache(coefficients='{out}')\".")
    if refusals:
        raise PoorFitError(" ".join(refusals))
