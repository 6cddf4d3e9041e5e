"""``flowblend calibrate``: what an adapter has to know of a pair before it can be used on it."""

from __future__ import annotations

import typer

from flowblend_plugins.cli.calibrate import calibrate_group

from .blending.forecast.command import forecast
from .feature_caching.diffusers.mag_command import mag_cache
from .feature_caching.teacache.command import teacache
from .step_reduction.selected_timesteps.command import timesteps


def add_calibrations(app: typer.Typer) -> None:
    """Add what adapters measure to the core's own calibrations."""
    group = calibrate_group(app)
    for command in (teacache, mag_cache, timesteps, forecast):
        group.command()(command)
