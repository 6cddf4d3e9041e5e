"""The pages on few-step denoisers: their examples run, and name every option and figure as it is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from flowblend_adapters.distilled_samplers.distilled import Distilled
from flowblend_adapters.distilled_samplers.distilled_small import DistilledSmall
from flowblend_adapters.distilled_samplers.published import CausVid, FastWan, LightX2V, LTXDistilled
from flowblend_plugins import Adapter

PAGES = sorted((Path(__file__).parents[3] / "docs" / "distilled").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    assert examples
    for example in examples:
        exec(compile(example, str(page), "exec"), {})


@pytest.mark.parametrize("adapter", [Distilled, DistilledSmall])
def test_every_option_is_in_the_table(adapter: type[Adapter]) -> None:
    (page,) = (page for page in PAGES if page.stem == adapter.name)
    rows = re.findall(r"^\| (`.*?`) \|", page.read_text(), re.M)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {field.name for field in dataclasses.fields(adapter)} <= documented  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [LightX2V, CausVid, FastWan, LTXDistilled])
def test_published_figures_are_the_documented_ones(method: type[Distilled]) -> None:
    (page,) = (page for page in PAGES if page.stem == "published")
    (row,) = re.findall(rf"^\| `{method.name}` \|(.*)$", page.read_text(), re.M)
    adapter = method()
    for source in (adapter.large, adapter.small):
        assert (source or "to be given") in row
    if adapter.sigmas is not None:
        levels = row.split("|")[2].partition("(")[0]
        assert [float(level) for level in levels.split(",")] == pytest.approx(adapter.sigmas, abs=5e-5)
    else:
        assert f"{adapter.num_inference_steps} steps, shift {adapter.flow_shift:g}" in row
        assert f"LoRA at {adapter.lora_scale:g}" in row
    assert {"lcm": "LCM", "unipc": "UniPC", "euler": "Euler"}[str(adapter.sampler)] in row
