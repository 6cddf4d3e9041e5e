"""The command ``flowblend calibrate forecast``, which measures velocities."""

from __future__ import annotations

from typing import Annotated

import typer

from flowblend_plugins.cli.calibrate import Calibrated, CalibrationRequest, calibrate_command


@calibrate_command("out/forecast.json", "The JSON file for forecast(moments=FILE).", without=["small"])
def forecast(
    request: CalibrationRequest,
    *,
    steps: Annotated[
        int, typer.Option(min=2, help="Of each generation; some three times as many as will be sampled with.")
    ] = 60,
) -> Calibrated:
    """Measure how alike the large denoiser's velocities are from step to step, for a forecast that errs least.

    The large denoiser generates every prompt alone. FILE receives the inner products of its velocities at every two
    timesteps and guidance branches, the mean over the prompts. They serve any solver, number of steps and shift.

    Examples:

        flowblend calibrate forecast --prompts-file prompts.txt --out forecast.json

        flowblend calibrate forecast --large ./wan14b --prompt "a cat surfing" --prompt "a train" --steps 100
    """
    opened = request.open()

    from .calibration import calibrate_forecast

    calls = [call | {"num_inference_steps": steps} for call in request.calls(opened)]
    moments = calibrate_forecast(opened.pipeline, calls=calls)
    branches = ", ".join(str(branch) for branch in moments.branches)
    return Calibrated(
        moments.to_json(),
        [
            f"{len(calls)} prompts, {len(moments.timesteps)} timesteps, guidance branches: {branches}",
            f"{request.out}: use it with --adapter \"forecast(moments='{request.out}')\".",
        ],
    )
