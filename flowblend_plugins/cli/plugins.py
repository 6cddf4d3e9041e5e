"""``flowblend plugins``: what is registered, and where it comes from."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import typer

from ..contract.adapter import Adapter
from ..extras import how_to_install, is_installed
from ..manager import FlowblendPluginManager, adapters_by_name, metrics_by_name, pairs_by_name
from ..types import JsonObject, Keywords
from .options import JsonOption


def plugins(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List plugins with their distributions and hooks, adapters with their traits, pairs and metrics.

    The environment variable FLOWBLEND_BLOCK names plugins to leave out, separated by commas.

    Examples:

        flowblend plugins

        flowblend plugins --json

        FLOWBLEND_BLOCK=adapters flowblend plugins
    """
    listing = list_plugins(ctx.obj)
    if as_json:
        typer.echo(json.dumps(listing, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, columns in (
        ("plugins", ("name", "distribution", "version", "hooks")),
        ("adapters", ("name", "family", "options", "traits", "plugin")),
        ("pairs", ("name", "large", "small", "sizes", "schedule", "early", "late")),
        ("metrics", ("name",)),
    ):
        table = Table(title=title.capitalize(), title_justify="left", header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in listing[title]:
            table.add_row(*(_shown(row[column]) for column in columns))
        console.print(table)
    for row in listing["adapters"]:
        if row["missing"] is not None:
            console.print(
                f"{row['name']} needs the package {row['missing']}. {how_to_install(row['missing'])}", markup=False
            )


def list_plugins(manager: FlowblendPluginManager) -> dict[str, list[Keywords]]:
    """Everything registered, as plain data."""
    rows = []
    for name, plugin in manager.list_name_plugin():
        if plugin is None:
            continue
        origin = manager.origin(plugin)
        hooks = sorted(caller.name for caller in manager.get_hookcallers(plugin) or ())
        rows.append({"name": name, "distribution": origin.distribution, "version": origin.version, "hooks": hooks})
    return {
        "plugins": rows,
        "adapters": [_adapter_row(manager, adapter) for adapter in adapters_by_name(manager).values()],
        "pairs": [
            {
                "name": p.name,
                "large": str(p.large),
                "small": str(p.small),
                "parameters": {letter: published.num_parameters for letter, published in p.published.items()},
                "sizes": ", ".join(f"{k} {v.num_parameters / 1e9:.3g}B" for k, v in p.published.items()),
                "schedule": p.schedule,
                "early": p.early,
                "late": p.late,
                "source": p.source,
            }
            for p in pairs_by_name(manager).values()
        ],
        "metrics": [{"name": name} for name in metrics_by_name(manager)],
    }


def _adapter_row(manager: FlowblendPluginManager, adapter: type[Adapter]) -> JsonObject:
    traits = dataclasses.asdict(adapter.traits)
    family = traits.pop("family").value
    facts = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in traits.items()}
    givers: Any = manager.hook.flowblend_register_adapters.get_hookimpls()
    plugin = next((giver.plugin_name for giver in givers if adapter in (giver.function() or ())), None)
    options = [field.name for field in dataclasses.fields(adapter)]  # type: ignore[arg-type]
    missing = adapter.package if adapter.package is not None and not is_installed(adapter.package) else None
    return {
        "name": adapter.name,
        "family": family,
        "options": options,
        "traits": facts,
        "plugin": plugin,
        "missing": missing,
    }


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(k if v is True else f"{k}={_shown(v)}" for k, v in value.items() if v)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
