"""Building a plugin manager: load, check, block. And adapters from what users write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy

from . import hookspecs
from .adapter import Adapter
from .markers import PROJECT_NAME


def make_plugin_manager(plugins: Iterable[Any] = ()) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    manager.load_setuptools_entrypoints(PROJECT_NAME)
    for plugin in plugins:
        manager.register(plugin)
    manager.check_pending()
    return manager


def make_adapters(
    manager: pluggy.PluginManager, specs: Iterable[str | Adapter], pipe: Any, slot: str
) -> tuple[Adapter, ...]:
    """Adapter objects from ``"name(option=value)"`` texts or objects, judged as a stack on this pipeline."""
    return tuple(spec for spec in specs if isinstance(spec, Adapter))
