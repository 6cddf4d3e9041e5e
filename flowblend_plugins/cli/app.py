"""The command line as typer sees it: an empty app that plugins fill."""

from __future__ import annotations

from typing import Annotated

import typer

from ..manager import FlowblendPluginManager, PluginOrigin, make_plugin_manager

_ABOUT = """FlowBlending for diffusers video pipelines: a large and a small denoiser share one trajectory.

Begin with `flowblend doctor`, then `flowblend run --out out/first`.
"""


def make_app(manager: FlowblendPluginManager | None = None) -> typer.Typer:
    """The app with every command that plugins contribute (all installed ones), which find the manager in ``ctx.obj``.

    Raises:
        PluginError: a plugin does not load, or fails to add its commands.
    """
    manager = manager or make_plugin_manager()
    app = typer.Typer(
        help=_ABOUT,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # rich's own markup would swallow every word in square brackets
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def common(
        ctx: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
        ] = False,
    ) -> None:
        ctx.obj = manager

    manager.hook.flowblend_register_commands(app=app)
    return app


def own_commands() -> FlowblendPluginManager:
    """A manager with this package's commands and no other plugin, for when the installed plugins do not load."""
    from . import commands

    manager = FlowblendPluginManager()
    manager.add(commands, PluginOrigin("commands"))
    return manager


def _print_version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"flowblend-plugins {__version__}")
        raise typer.Exit
