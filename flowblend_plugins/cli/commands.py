"""The plugin that contributes the package's own commands."""

from __future__ import annotations

import typer

from ..contract.markers import hookimpl
from .calibrate_boundaries import boundaries
from .calibrate_divergence import divergence
from .calibrate_options import calibrate_group
from .doctor import doctor
from .plugins import plugins
from .run import run


@hookimpl
def flowblend_register_commands(app: typer.Typer) -> None:
    """``run``, ``plugins``, ``doctor`` and ``calibrate``."""
    for command in (run, plugins, doctor):
        app.command()(command)
    for command in (divergence, boundaries):
        calibrate_group(app).command()(command)
