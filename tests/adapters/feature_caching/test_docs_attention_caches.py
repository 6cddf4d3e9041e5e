"""The pages of the attention caches: their examples run, and their tables are the options."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from flowblend_plugins.manager import adapters_by_name, make_plugin_manager

PAGES = Path(__file__).resolve().parents[3] / "docs" / "caches"
NAMES = ("taylorseer", "pyramid_attention_broadcast", "faster_cache")
every_page = pytest.mark.parametrize("name", NAMES)


@every_page
def test_its_example_runs_and_shows_the_cache_at_work(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{name}.md").read_text(), re.M | re.S)
    exec(compile(example, f"{name}.md", "exec"), {"__name__": "example"})
    forwards = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Forwards: "))
    assert ("reuse" if name == "pyramid_attention_broadcast" else "predict") in forwards


@every_page
def test_its_table_has_every_option_with_its_default(name: str) -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", (PAGES / f"{name}.md").read_text(), re.M))
    adapter = adapters_by_name(make_plugin_manager())[name]
    options = {field.name: repr(field.default).replace("'", '"') for field in dataclasses.fields(adapter)}  # type: ignore[arg-type]
    assert shown == options
