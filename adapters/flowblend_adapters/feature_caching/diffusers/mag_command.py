"""The command ``flowblend calibrate mag-cache``, which measures magnitude ratios."""

from __future__ import annotations

from flowblend_plugins.cli.calibrate import Calibrated, CalibrationRequest, calibrate_command


@calibrate_command("out/mag_ratios.json", "The JSON file for mag_cache(ratios=FILE).")
def mag_cache(request: CalibrationRequest) -> Calibrated:
    """Measure the magnitude ratios that MagCache needs, of both denoisers of a pair.

    Each denoiser generates every prompt alone, in diffusers' calibration mode, which computes every step. FILE receives
    one ratio for each step, the mean over prompts and guidance branches. The ratios are of this number of steps: for
    another one, calibrate again.

    Examples:

        flowblend calibrate mag-cache --steps 20 --out ratios.json

        flowblend calibrate mag-cache --large ./wan14b --small ./wan1.3b --prompt "a cat surfing" --steps 50
    """
    opened = request.open()

    from .mag_calibration import calibrate_mag_ratios

    calls = request.calls(opened)
    ratios = calibrate_mag_ratios(opened.pipeline, opened.small, calls=calls, denoisers=opened.further)
    lines = []
    for letter, entry in ratios.denoisers.items():
        low, high = min(entry.ratios[1:], default=1.0), max(entry.ratios[1:], default=1.0)
        lines.append(f"{letter} {entry.class_name}: ratios from {low:.4f} to {high:.4f} over {len(entry.ratios)} steps")
    lines.append(f"{request.out}: use it with --adapter \"mag_cache(ratios='{request.out}')\".")
    return Calibrated(ratios.to_json(), lines)
