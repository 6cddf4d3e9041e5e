"""The plugin that contributes the package's own commands."""

from __future__ import annotations

import typer

from ..markers import hookimpl
from .doctor import doctor
from .plugins import plugins
from .run import run


@hookimpl
def flowblend_register_commands(app: typer.Typer) -> None:
    """``run``, ``plugins`` and ``doctor``."""
    for command in (run, plugins, doctor):
        app.command()(command)
