"""``--config FILE``: the options of a command in a TOML file; what is also given on the command line wins."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated

import typer

from flowblend_plugins.errors import UsageError
from flowblend_plugins.types import JsonObject

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

_NOT_IN_A_FILE = {"config", "help", "resume", "as_json"}


def read_config(path: Path, ctx: typer.Context) -> JsonObject:
    """The options in a file, by parameter name; tables (``[budget]``) only group them.

    Args:
        path: of the file.
        ctx: click's context of the command whose options they are.

    Raises:
        UsageError: it cannot be read, or a key is no option of the command.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path}: it cannot be read: {error}.") from error
    # By flag without its dashes ("cell-timeout", "min_psnr_db"), which is what people know an option by.
    by_key = {
        flag.lstrip("-").replace("-", "_"): parameter
        for parameter in ctx.command.params
        if parameter.name not in _NOT_IN_A_FILE
        for flag in parameter.opts
    }
    found: JsonObject = {}
    for key, value in _flat(content):
        name = key.replace("-", "_")
        if name not in by_key:
            close = difflib.get_close_matches(name, by_key, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" Known: {', '.join(sorted(by_key))}."
            raise UsageError(f"--config {path}: {key!r} is no option of `{ctx.command_path}`.{hint}")
        parameter = by_key[name]
        if isinstance(value, list) and not parameter.multiple:
            raise UsageError(f"--config {path}: {key} takes one value, and the file gives a list.")
        found[parameter.name] = [value] if parameter.multiple and not isinstance(value, list) else value
    return found


def _flat(table: JsonObject) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for key, value in table.items():
        pairs += _flat(value) if isinstance(value, dict) else [(key, value)]
    return pairs


def _apply(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = {**(ctx.default_map or {}), **read_config(path, ctx)}
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", is_eager=True, callback=_apply, help="Options in a TOML file; those given here win."
    ),
]
