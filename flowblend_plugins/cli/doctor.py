"""``flowblend doctor``: what is installed, and what would and would not work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from ..manager import FlowblendPluginManager, pairs_by_name
from .options import JsonOption

_NEEDED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pluggy", "numpy", "av", "DeepCache")
_EXTRAS = {
    "peft": ("lora", "LoRAs on either denoiser"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``state`` is ``ok``, ``missing`` (something optional) or ``broken``."""

    what: str
    state: str
    detail: str


def doctor(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Say what is installed, and what would and would not work, and why.

    Exit code 1 where FlowBlending itself would not run.
    """
    findings = examine(ctx.obj)
    broken = any(finding.state == "broken" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"works": not broken, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        from rich.console import Console
        from rich.table import Table

        colours = {"ok": "green", "missing": "yellow", "broken": "red"}
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for finding in findings:
            table.add_row(
                f"[{colours[finding.state]}]{finding.state}[/]", finding.what, finding.detail.replace("[", r"\[")
            )
        console = Console()
        console.print(table)
        console.print("FlowBlending would not run here." if broken else "FlowBlending works here.")
    if broken:
        raise typer.Exit(1)


def examine(manager: FlowblendPluginManager) -> list[Finding]:
    """Look at everything a run depends on."""
    return [
        Finding("Python", "ok", platform.python_version()),
        *map(_needed, _NEEDED),
        _diffusers_hooks(),
        _device(),
        _encoder(),
        *(_extra(package, extra, purpose) for package, (extra, purpose) in _EXTRAS.items()),
        Finding("plugins", "ok", ", ".join(name for name, plugin in manager.list_name_plugin() if plugin is not None)),
        *_local_pairs(manager),
    ]


def _needed(package: str) -> Finding:
    try:
        return Finding(package, "ok", importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "broken", f"not installed. Run: pip install {package}")


def _diffusers_hooks() -> Finding:
    """The router leans on what a denoiser with cache support offers; say so if a new diffusers moved it."""
    from diffusers.models.cache_utils import CacheMixin

    missing = [
        name for name in ("cache_context", "_reset_stateful_cache", "enable_cache") if not hasattr(CacheMixin, name)
    ]
    if missing:
        detail = f"CacheMixin has no {', '.join(missing)}: this diffusers is not supported. Install diffusers 0.42."
        return Finding("diffusers' cache hooks", "broken", detail)
    return Finding("diffusers' cache hooks", "ok", "cache contexts and resets reach both denoisers")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", "ok", torch.cuda.get_device_name())
    return Finding("device", "missing", "no CUDA device: fit for the reference pair, not for published models")


def _encoder() -> Finding:
    from av.codec import Codec

    try:
        return Finding("video encoder", "ok", Codec("libx264", "w").long_name)
    except ValueError:
        return Finding("video encoder", "broken", "PyAV has no libx264. Install the `av` wheel: pip install av")


def _extra(package: str, extra: str, purpose: str) -> Finding:
    if importlib.util.find_spec(package):
        return Finding(package, "ok", f"{importlib.metadata.version(package)}: {purpose}")
    return Finding(package, "missing", f"without it, no {purpose}. Run: pip install 'flowblend-plugins[{extra}]'")


def _local_pairs(manager: FlowblendPluginManager) -> list[Finding]:
    """Pairs that come with a package have folders, which must be there; the others are on the hub."""
    findings = []
    for pair in pairs_by_name(manager).values():
        if not isinstance(pair.large, Path):
            findings.append(Finding(f"pair {pair.name}", "ok", f"on the hub: {pair.large} and {pair.small}"))
        elif (pair.large / "model_index.json").is_file() and (Path(pair.small) / "config.json").is_file():
            findings.append(Finding(f"pair {pair.name}", "ok", "its weights are here"))
        else:
            findings.append(Finding(f"pair {pair.name}", "broken", f"its weights are not in {pair.large.parent}"))
    return findings
