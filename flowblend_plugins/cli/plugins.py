"""``flowblend plugins``: what is registered, one line each, and all about one of them by its name."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from ..contract.adapter import Adapter
from ..contract.traits import Family
from ..errors import UsageError
from ..extras import how_to_install, is_installed
from ..manager import FlowblendPluginManager, adapters_by_name, metrics_by_name, pairs_by_name
from ..types import JsonObject, Keywords
from .options import JsonOption

_WIDTH = 80
_NAME_WIDTH = 28


def plugins(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Adapter, pair or plugin to tell all about.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List adapters, pairs, metrics and plugins, one line each; with NAME tell all about one.

    The environment variable FLOWBLEND_BLOCK names plugins to leave out, separated by commas.

    Examples:

        flowblend plugins

        flowblend plugins mag_cache

        FLOWBLEND_BLOCK=adapters flowblend plugins --json
    """
    listing = list_plugins(ctx.obj)
    if name is not None:
        found = {kind: row for kind, rows in listing.items() for row in rows if row["name"] == name}
        if not found:
            known = [row["name"] for rows in listing.values() for row in rows]
            close = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4))
            raise UsageError(
                f"nothing is registered as {name!r}. {f'Did you mean {close}? ' if close else ''}`flowblend plugins` "
                "lists all."
            )
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return
        for kind, row in found.items():
            for line in _about_adapter(row) if kind == "adapters" else _about(row):
                typer.echo(line)
        return
    if as_json:
        typer.echo(json.dumps(listing, indent=2))
        return
    for line in _overview(listing):
        typer.echo(line)


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
                "verified": p.verified,
                "caveats": list(p.caveats),
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
    missing = adapter.package if adapter.package is not None and not is_installed(adapter.package) else None
    is_required = dataclasses.MISSING
    fields = dataclasses.fields(adapter)  # type: ignore[arg-type]
    return {
        "name": adapter.name,
        "family": family,
        "about": inspect.getdoc(adapter) or "",
        "options": [field.name for field in fields],
        "defaults": {field.name: repr(field.default) for field in fields if field.default is not is_required},
        "traits": facts,
        "suggested": list(adapter.suggested),
        "page": adapter.page,
        "plugin": plugin,
        "missing": missing,
    }


def _overview(listing: dict[str, list[Keywords]]) -> Iterator[str]:
    for family in Family:
        rows = [row for row in listing["adapters"] if row["family"] == family.value]
        if rows:
            yield f"Adapters: {family.value.replace('_', ' ')}"
        for row in rows:
            need = f"[{row['missing']} missing] " if row["missing"] else ""
            yield _line(row["name"], need + first_sentence(row["about"]))
    yield "Pairs"
    for row in listing["pairs"]:
        yield _line(row["name"], f"{row['sizes'] or 'comes with a package'}; {row['schedule']}")
    yield _line("Metrics", ", ".join(row["name"] for row in listing["metrics"]), indent=0)
    yield _line("Plugins", ", ".join(row["name"] for row in listing["plugins"]), indent=0)
    yield ""
    yield "flowblend plugins NAME tells options, defaults, traits, an example and the page."


def _line(name: str, about: str, indent: int = 2) -> str:
    line = f"{' ' * indent}{name:<{_NAME_WIDTH - indent}} {about}"
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1].rstrip(' ,.')}…"


def first_sentence(text: str) -> str:
    """The first sentence of a docstring on one line, without its marks of code and its full stop."""
    first = " ".join(text.split("\n\n")[0].split())
    return first.split(". ")[0].replace("``", "").removesuffix(".")


def _about_adapter(row: Keywords) -> Iterator[str]:
    """Description, options with defaults, traits, an example and the page of one adapter."""
    yield f"{row['name']}: adapter, {row['family'].replace('_', ' ')}, from the plugin {row['plugin']}"
    if row["missing"]:
        yield f"It needs the package {row['missing']}. {how_to_install(row['missing'])}"
    yield ""
    yield row["about"].replace("``", "")
    yield ""
    yield "Options, with their defaults:"
    yield from (f"  {name}={row['defaults'].get(name, '(required)')}" for name in row["options"])
    if not row["options"]:
        yield "  none"
    traits = ", ".join(k if v is True else f"{k}={_shown(v)}" for k, v in row["traits"].items() if v)
    yield from textwrap.wrap(f"Traits: {traits or 'none'}", _WIDTH, subsequent_indent="  ")
    example = row["suggested"][0] if row["suggested"] else row["name"]
    quote = "'" if '"' in example else '"'
    yield f"Example: flowblend run --adapter {quote}{example}{quote}"
    if row["page"]:
        yield f"Page: {row['page']}"


def _about(row: Keywords) -> Iterator[str]:
    for key, value in row.items():
        if value not in (None, "", [], {}):
            yield from textwrap.wrap(
                f"{key}: {_shown(value)}",
                _WIDTH,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
