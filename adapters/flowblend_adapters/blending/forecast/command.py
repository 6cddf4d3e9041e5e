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
    own_steps: Annotated[
        int | None, typer.Option(min=3, help="Number of steps you will sample with.  [default: the pair's]")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Also run large-only and four stacks, which `flowblend plan` needs.")
    ] = True,
) -> Calibrated:
    """Measure how alike the large denoiser's velocities are from step to step, for a forecast that errs least.

    The large denoiser generates every prompt alone. FILE receives the inner products of its velocities at every two
    timesteps and guidance branches, the mean over the prompts. They serve any solver, number of steps and shift.
    With --check each prompt is then generated five times more at your own number of steps: large-only and four stacks,
    which tell decibels, times and how errors grow.

    Examples:

        flowblend calibrate forecast --prompts-file prompts.txt --out forecast.json

        flowblend calibrate forecast --large ./wan14b --prompt "a cat surfing" --prompt "a train" --steps 100
    """
    opened = request.open()

    from .calibration import calibrate_forecast

    calls = [call | {"num_inference_steps": steps} for call in request.calls(opened)]
    moments = calibrate_forecast(opened.pipeline, calls=calls)
    branches = ", ".join(str(branch) for branch in moments.branches)
    told = [f"{len(calls)} prompts, {len(moments.timesteps)} timesteps, guidance branches: {branches}"]
    if check:
        from .check import check_forecast

        asked = {} if own_steps is None else {"num_inference_steps": own_steps}
        own_calls = [call | asked for call in request.calls(opened)]
        moments = check_forecast(opened.pipeline, moments, calls=own_calls)
        assert moments.own_sampling is not None
        for one in moments.own_sampling.checked:
            predicted, observed = one["predicted_psnr_db"], one["observed_psnr_db"]
            told.append(f"{one['schedule']}: {predicted:.1f} dB predicted, {observed:.1f} dB observed")
        told.append(f"{request.out}: compute a stack with `flowblend plan --moments {request.out} --min-psnr 30`.")
    return Calibrated(
        moments.to_json(),
        [
            *told,
            f"{request.out}: use it with --adapter \"forecast(moments='{request.out}')\".",
        ],
    )
