"""The plugin that contributes the package's own commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract.markers import hookimpl

if TYPE_CHECKING:  # this plugin is loaded by every enable(), also where no command line is installed
    import typer


@hookimpl
def flowblend_register_commands(app: typer.Typer) -> None:
    """Add ``run``, ``plugins``, ``doctor`` and ``calibrate`` to the command line."""
    from .calibrate import calibrate_group
    from .calibrate_boundaries import boundaries
    from .calibrate_divergence import divergence
    from .doctor import doctor
    from .plugins import plugins
    from .run import run

    for command in (run, plugins, doctor):
        app.command()(command)
    for command in (divergence, boundaries):
        calibrate_group(app).command()(command)
