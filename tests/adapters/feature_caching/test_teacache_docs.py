"""The page of TeaCache: its example runs, its tables are the options, its figures are the code's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from flowblend_adapters.feature_caching.teacache.adapter import TeaCache
from flowblend_adapters.feature_caching.teacache.adopted import AdoptedTeaCache
from flowblend_adapters.feature_caching.teacache.calibration import MIN_R_SQUARED
from flowblend_adapters.feature_caching.teacache.fits import SHIPPED

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "caches" / "teacache.md").read_text()


def test_its_example_runs_and_the_plan_is_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "teacache.md", "exec"), namespace)
    calls = namespace["blend"].trace.last.calls
    assert [call.outcome for call in calls if call.step.branch == "cond"] == list(namespace["outcomes"])
    assert "reuse" in namespace["outcomes"]
    assert "reuse" in capsys.readouterr().out


def test_its_tables_have_every_option_with_its_default() -> None:
    teacache, adopted = PAGE.split("\n## adopted_teacache\n")
    for text, adapter in ((teacache, TeaCache), (adopted, AdoptedTeaCache)):
        shown = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", text, re.M))
        assert shown == {field.name: repr(field.default) for field in dataclasses.fields(adapter)}


def test_its_figures_and_paths_are_real() -> None:
    assert f"R² under {MIN_R_SQUARED:g} is refused" in PAGE
    path = re.findall(r"--out (adapters/\S+)", PAGE)[0]
    assert Path(path).parts[1:] == (SHIPPED / "reference.json").parts[-len(Path(path).parts) + 1 :]
    assert (SHIPPED / "reference.json").is_file()
