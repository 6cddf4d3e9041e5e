"""The solvers' pages: their examples run, and their tables are the options and the solvers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from flowblend_adapters.step_reduction.solver import solvers_among
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.manager import adapters_by_name, make_plugin_manager

PAGES = Path(__file__).resolve().parents[3] / "docs" / "solvers"


@pytest.mark.parametrize("name", ["solvers", "timesteps"])
def test_its_example_runs(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{name}.md").read_text(), re.M | re.S)
    exec(compile(example, f"{name}.md", "exec"), {"__name__": "example"})
    steps = {"solvers": 20, "timesteps": 8}[name]
    assert f"{steps} steps, {2 * steps} denoiser calls" in capsys.readouterr().out


def test_the_tables_are_the_solvers_and_their_options() -> None:
    adapters = adapters_by_name(make_plugin_manager())
    solvers = {name: one for name, one in adapters.items() if one.traits.family is Family.STEP_REDUCTION}
    page = (PAGES / "solvers.md").read_text()
    first, second = page.split("| option |", 1)
    named = {name for row in re.findall(r"^\| (`.*?) \|", first, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert named == {*solvers} == {solver.name for solver in solvers_among(adapters.values())}
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", second, re.M)
    fields = {field.name: repr(field.default) for solver in solvers.values() for field in dataclasses.fields(solver)}  # type: ignore[arg-type]
    assert dict(rows) == fields


def test_every_solver_suggests_settings_that_are_its_own() -> None:
    for solver in solvers_among(adapters_by_name(make_plugin_manager()).values()):
        assert len(solver.suggested) == 2, solver.name
        assert all(text.startswith(f"{solver.name}(") for text in solver.suggested)
