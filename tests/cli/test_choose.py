"""``docs/choose.md``: its tables are made from the data, and its commands are ones that the command line takes."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import diffusers
import pytest
import typer.main

from flowblend_plugins.cli.app import make_app
from flowblend_plugins.cli.options import find_preset
from flowblend_plugins.manager import make_adapters, make_plugin_manager
from flowblend_plugins.published_pairs import PUBLISHED_PAIRS
from tests.exactness.pipelines import FAMILIES, SKYREELS, UNETS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "choose.md").read_text(encoding="utf-8")
MADE = runpy.run_path(str(DOCS / "update_choose.py"))
COMMANDS = re.findall(r"`flowblend (.+?)`", PAGE)
STACKS = re.findall(r": `((?:[LS]+|[LS]:\S+)(?: \+ .+?)*)`", MADE["page_with_tables"](PAGE))


def test_the_tables_are_those_of_the_data() -> None:
    assert MADE["page_with_tables"](PAGE) == PAGE, "run: python docs/update_choose.py"


@pytest.mark.parametrize("text", COMMANDS)
def test_every_command_is_one(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "still.png").touch()
    manager = make_plugin_manager()
    command: Any = typer.main.get_command(make_app(manager))
    words = shlex.split(text)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    given = command.make_context("flowblend", words).params
    adapters = given.get("adapter") or ()
    make_adapters(manager, [one for one in adapters if one != "my_cache"])
    if isinstance(given.get("pair"), str):
        find_preset(manager, given["pair"], given.get("large"))


def test_every_stack_can_be_typed() -> None:
    manager = make_plugin_manager()
    assert len(STACKS) >= 6
    for stack in STACKS:
        make_adapters(manager, stack.split(" + ")[1:])


def test_the_table_of_pipelines_has_every_pair_and_what_is_tested() -> None:
    named = [name for pairs in MADE["PIPELINES"].values() if not isinstance(pairs, str) for name in pairs]
    assert sorted(named) == sorted(pair.name for pair in PUBLISHED_PAIRS)
    assert all(hasattr(diffusers, pipeline) for pipeline in MADE["PIPELINES"])
    families = [*FAMILIES.values(), SKYREELS, *UNETS]  # of tests/exactness/test_oracles.py
    assert {type(family.make_pipe()).__name__ for family in families} == {*MADE["WITH_ORACLES"]}
