"""The pages of the block caches: their examples run, and their tables are the options."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from flowblend_plugins.manager import adapters_by_name, make_plugin_manager

PAGES = Path(__file__).resolve().parents[3] / "docs" / "caches"
NAMES = ("first_block_cache", "mag_cache", "sea_cache", "adopted_diffusers_cache")
every_page = pytest.mark.parametrize("name", NAMES)


@every_page
def test_its_example_runs_and_shows_the_cache_at_work(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{name}.md").read_text(), re.M | re.S)
    exec(compile(example, f"{name}.md", "exec"), {"__name__": "example"})
    forwards = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Forwards: "))
    large, small = forwards.split("; ")
    assert ("predict" if name == "sea_cache" else "reuse") in large
    assert "predict" in small or "reuse" in small


@every_page
def test_its_table_has_every_option_with_its_default(name: str) -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", (PAGES / f"{name}.md").read_text(), re.M))
    adapter = adapters_by_name(make_plugin_manager())[name]
    options = {field.name: repr(field.default) for field in dataclasses.fields(adapter)}  # type: ignore[arg-type]
    assert shown == options
