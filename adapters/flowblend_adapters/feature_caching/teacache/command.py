"""The command ``flowblend calibrate teacache``, which fits coefficients."""

from __future__ import annotations

from typing import Annotated

import typer

from flowblend_plugins.cli.calibrate import Calibrated, CalibrationRequest, calibrate_command
from flowblend_plugins.types import Pipeline


@calibrate_command("out/teacache.json", "The JSON file for teacache(coefficients=FILE).")
def teacache(
    request: CalibrationRequest,
    *,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            "--steps",
            min=1,
            help="Number of inference steps; may be repeated, the main one first.  [default: the pair's]",
        ),
    ] = None,
) -> Calibrated:
    """Fit TeaCache's coefficients to both denoisers of a pair.

    Each denoiser generates every prompt alone and computes every step. FILE receives a polynomial of degree 4 for each
    of its signals, with the quality of the fit, the domain it holds on, and thresholds that reuse a third and half of
    the calls. A poor fit is refused, and exit code 1 says so; the good ones are written.

    Examples:

        flowblend calibrate teacache --steps 20 --steps 50 --out coefficients.json

        flowblend calibrate teacache --large ./wan14b --small ./wan5b --prompt "a cat surfing" --prompt "rain at night"
    """
    opened = request.open()

    from .calibration import PoorFitError, fit_denoiser, record_changes, refuse_poor
    from .fits import fits_to_json

    def generate_all(pipeline: Pipeline) -> None:
        for count in [{"num_inference_steps": count} for count in steps or ()] or [{}]:
            for call in request.calls(opened):
                pipeline(**call | count)

    fits, refusals = [], []
    for letter in ["L", *(["S"] if opened.small is not None else []), *opened.further]:
        denoiser, trajectories = record_changes(opened.pipeline, opened.small, letter, [generate_all], opened.further)
        for fit in fit_denoiser(denoiser, trajectories):
            try:
                refuse_poor(letter, fit)
                fits.append(fit)
            except PoorFitError as error:
                refusals.append(str(error))
            low, high = fit.estimate.polynomial.domain
            request.say(
                f"{letter} {fit.signal}: degree {fit.degree}, R^2 {fit.r_squared:.3f} over {fit.num_points} points, "
                f"domain {low:.4g} to {high:.4g}, threshold {fit.estimate.slow:g} slow, {fit.estimate.fast:g} fast"
            )
    use = f"{request.out}: {len(fits)} fits. Use them with --adapter \"teacache(coefficients='{request.out}')\"."
    return Calibrated(
        fits_to_json(fits, pair=opened.name, prompts=request.prompts, seed=request.seed, refused=refusals),
        [use] if fits else [],
        failure=PoorFitError(" ".join(refusals)) if refusals else None,
        is_useful=bool(fits),
    )
