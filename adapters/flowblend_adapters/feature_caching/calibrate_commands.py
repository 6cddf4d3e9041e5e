"""``flowblend calibrate``: what an adapter has to know of a pair before it can be used on it."""

from __future__ import annotations

import typer

from ..step_reduction.timesteps_command import timesteps
from .mag_calibrate_command import mag_cache
from .teacache.calibrate_command import teacache

calibrate = typer.Typer(no_args_is_help=True, help="Measure on a pair what an adapter has to know of it.")
calibrate.command()(teacache)
calibrate.command()(mag_cache)
calibrate.command()(timesteps)
