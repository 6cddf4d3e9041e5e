"""``plugins``, ``doctor`` and the help pages in the docs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowblend_plugins import __version__
from flowblend_plugins.cli import doctor
from flowblend_plugins.manager import make_plugin_manager

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
BLOCKS = dict(re.findall(r"```text\n\$ flowblend ?(.*?) ?--help\n(.*?)```", PAGE.read_text(), re.S))


def test_plugins_lists_our_own_like_a_strangers(flowblend: Callable[..., Any]) -> None:
    result = flowblend("plugins", "--json")
    assert result.code == 0
    listing = json.loads(result.out)
    ours = {row["name"]: row for row in listing["plugins"]}
    assert ours["adapters"]["distribution"] == "flowblend-plugins"
    assert ours["adapters"]["version"] == __version__
    assert {"unipc", "flow_euler", "dpmpp_2m"} <= {row["name"] for row in listing["adapters"]}
    assert {row["plugin"] for row in listing["adapters"]} == {"adapters"}
    assert "reference" in {row["name"] for row in listing["pairs"]}
    assert flowblend("plugins").code == 0


def test_doctor_is_content_here(flowblend: Callable[..., Any]) -> None:
    result = flowblend("doctor", "--json")
    assert result.code == 0
    findings = {finding["what"]: finding for finding in json.loads(result.out)["findings"]}
    assert findings["torch"]["state"] == "ok"
    assert findings["pair reference"]["state"] == "ok"
    assert "FlowBlending works here." in flowblend("doctor").out


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, flowblend: Callable[..., Any]) -> None:
    monkeypatch.setattr(doctor, "_NEEDED", ("torch", "nonesuch"))
    result = flowblend("doctor")
    assert result.code == 1
    assert "pip install nonesuch" in result.out


def test_version(flowblend: Callable[..., Any]) -> None:
    assert flowblend("--version").out.strip() == f"flowblend-plugins {__version__}"


def test_help_in_the_docs_is_the_real_one() -> None:
    """Typer reads the width when it is imported, so this takes a process of its own."""
    program = (
        "import sys; from flowblend_plugins.cli import run; [(print('$', c), run([*c.split(), '--help'])) for c in "
    )
    result = subprocess.run(
        [sys.executable, "-c", f"{program}{list(BLOCKS)!r}]"],
        env=os.environ | {"TERMINAL_WIDTH": "100", "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    real = dict(part.partition("\n")[::2] for part in result.stdout.split("$ ")[1:])
    assert {command: _plain(text) for command, text in BLOCKS.items()} == {c: _plain(t) for c, t in real.items()}, (
        "docs/cli.md is behind the commands: run `python docs/update_cli_help.py`"
    )


def test_every_command_has_its_help_in_the_docs() -> None:
    import typer

    app = typer.Typer()
    make_plugin_manager().hook.flowblend_register_commands(app=app)
    commands = {info.callback.__name__ for info in app.registered_commands if info.callback}
    groups = {info.name for info in app.registered_groups}
    assert commands <= set(BLOCKS)
    assert all(any(block.startswith(str(group)) for block in BLOCKS) for group in groups)


def _plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]
