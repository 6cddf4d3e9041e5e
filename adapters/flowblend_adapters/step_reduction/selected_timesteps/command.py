"""The command ``flowblend calibrate timesteps``, which selects noise levels."""

from __future__ import annotations

from typing import Annotated

import typer

from flowblend_plugins import UsageError
from flowblend_plugins.cli.calibrate import Calibrated, CalibrationRequest, calibrate_command


@calibrate_command("out/timesteps.json", "The JSON file for unipc(timesteps=FILE).", without=["small"])
def timesteps(
    request: CalibrationRequest,
    *,
    steps: Annotated[
        list[int] | None,
        typer.Option("--steps", min=1, help="A number of steps to select for; may be repeated.  [default: 8, 12, 20]"),
    ] = None,
    dense_steps: Annotated[
        int, typer.Option(min=2, help="Steps of the dense run; the selected noise levels are among its own.")
    ] = 60,
) -> Calibrated:
    """Select the noise levels to sample at, from one dense run of the large denoiser for each prompt.

    The dense runs take small Euler steps. FILE receives, for each number of steps, the noise levels between which an
    Euler step errs least on what was seen there. Solvers that take a list of noise levels take the file: unipc,
    flow_euler.

    Examples:

        flowblend calibrate timesteps --steps 8 --steps 12 --out timesteps.json

        flowblend calibrate timesteps --large ./wan14b --prompt "a cat surfing" --dense-steps 50 --steps 20
    """
    counts = sorted(set(steps or (8, 12, 20)))
    if counts[-1] > dense_steps:
        raise UsageError(
            f"--steps {counts[-1]} of --dense-steps {dense_steps}: select fewer steps than the dense run has."
        )
    opened = request.open()

    from .dense_run import select_timesteps

    calls = request.calls(opened)
    selected = select_timesteps(opened.pipeline, calls=calls, num_dense_steps=dense_steps, num_steps=counts)
    lines = [
        f"{count} steps: {', '.join(f'{sigma:.3g}' for sigma in sigmas)}"
        for count, sigmas in selected.selections.items()
    ]
    adapter = f"unipc(timesteps='{request.out}', num_inference_steps={counts[0]})"
    lines.append(f'{request.out}: use it with --adapter "{adapter}".')
    return Calibrated(selected.to_json(), lines)
