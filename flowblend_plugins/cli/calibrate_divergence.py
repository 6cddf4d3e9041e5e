"""The command ``flowblend calibrate divergence``, which compares two denoisers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files.writing import prepare_output_folder
from .calibrate import Calibrated, CalibrationRequest, SolverOption, calibrate_command


@calibrate_command("out/divergence.json", "The JSON file that is written.")
def divergence(
    request: CalibrationRequest,
    *,
    adapter: SolverOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw it, as PNG or SVG by the file's ending.")
    ] = None,
) -> Calibrated:
    """Measure how far apart the velocities of the two denoisers are at every step.

    The large denoiser generates every prompt alone, with the small one in its shadow: it is asked at every step and has
    no influence. FILE receives cosine and relative l2 distance for each step, of either guidance branch and after
    guidance, with mean and standard deviation over the prompts.

    Examples:

        flowblend calibrate divergence --steps 20 --out divergence.json --plot divergence.png

        flowblend calibrate divergence --large ./wan14b --small ./wan1.3b --prompts-file prompts.txt --steps 50
    """
    if plot is not None:
        from ..calibration.drawing import check_drawable

        prepare_output_folder(plot.parent)
        check_drawable(plot)
    order = request.order(adapter)

    from ..calibration.measuring import measure_divergence
    from ..calibration.plot import plot_as_text

    curve = measure_divergence(order)
    lines = [plot_as_text(curve), f"{request.out}: all branches, with the spread over prompts."]
    if plot is not None:
        from ..calibration.drawing import draw

        draw(curve, plot)
        lines.append(f"{plot}: the same, drawn.")
    return Calibrated(curve.to_json(), lines)
