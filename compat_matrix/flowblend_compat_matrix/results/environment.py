"""Environment of a run: software and machine, which a reader needs to judge its timings."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from flowblend_plugins.manager import FlowblendPluginManager, make_plugin_manager
from flowblend_plugins.types import JsonObject

ALWAYS_THERE = ("flowblend-plugins", "torch", "diffusers", "transformers")
USED_BY_ADAPTERS = ("cache-dit", "DeepCache", "peft")


def describe_environment(manager: FlowblendPluginManager | None = None, num_threads: int | None = None) -> JsonObject:
    """Versions, plugins, machine and threads of a worker (``None``: torch's choice), as plain JSON values."""
    manager = manager or make_plugin_manager()
    plugins = {name: origin for name, origin in manager.origins.items() if origin.distribution is not None}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ALWAYS_THERE},
        "packages": dict(_installed(USED_BY_ADAPTERS)),
        "adapters": dict(sorted(_distributions_of_adapters(manager))),
        "plugins": {name: f"{plugin.distribution} {plugin.version}" for name, plugin in sorted(plugins.items())},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "num_cpus": os.cpu_count(),
        "num_threads": num_threads or torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _installed(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def _distributions_of_adapters(manager: FlowblendPluginManager) -> Iterator[tuple[str, str]]:
    """Distribution that each adapter comes from; one that was passed as an object has none."""
    for implementation in manager.hook.flowblend_register_adapters.get_hookimpls():
        origin = manager.origin(implementation.plugin)
        given: Any = implementation.function()
        for adapter in given or ():
            yield adapter.name, f"{origin.distribution} {origin.version}" if origin.distribution else "none"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"
