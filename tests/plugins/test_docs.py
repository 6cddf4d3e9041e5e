"""The plugin author's pages say what the code does: their hooks, their arguments and their examples."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import SkipTest

import pytest

from flowblend_plugins import hookspecs
from flowblend_plugins.contract.markers import HOOK_PREFIX
from flowblend_plugins.manager import make_plugin_manager
from flowblend_plugins.testing import AdapterContract

DOCS = Path(__file__).resolve().parents[2] / "docs"
HOOKS = [name for name in vars(hookspecs) if name.startswith(HOOK_PREFIX)]
SECTION = re.compile(r"^## (flowblend_\w+)\(([^)]*)\)\n(.*?)(?=^## |\Z)", re.M | re.S)
SECTIONS = {name: (arguments, body) for name, arguments, body in SECTION.findall((DOCS / "hooks.md").read_text())}


def examples(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def test_the_hooks_are_documented_in_the_order_of_the_contract() -> None:
    assert list(SECTIONS) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_documented_with_exactly_its_arguments(hook: str) -> None:
    arguments, _ = SECTIONS[hook]
    assert arguments == ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_documented_with_its_sentence_when_it_is_called_and_an_example(hook: str) -> None:
    _, body = SECTIONS[hook]
    flat = " ".join(body.replace("`", "").split())
    assert inspect.getdoc(getattr(hookspecs, hook)).replace("`", "").rstrip(".") in flat
    assert "When: " in body
    assert f"def {hook}(" in body


@pytest.fixture
def run_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    def run(source: str) -> dict[str, Any]:
        """Import it as a module of its own, as its reader would."""
        path = tmp_path / "example.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("example", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "example", module)
        spec.loader.exec_module(module)
        return vars(module)

    return run


@pytest.mark.parametrize("number", range(len(examples("hooks.md"))))
def test_an_example_of_the_hooks_page_runs_and_keeps_the_contract(
    number: int, run_example: Callable[[str], dict[str, Any]]
) -> None:
    namespace = run_example(examples("hooks.md")[number])
    hooks = {name: value for name, value in namespace.items() if name.startswith(HOOK_PREFIX)}
    plugins = [value() for value in namespace.values() if inspect.isclass(value) and value.__module__ == "example"]
    if hooks and "flowblend_register_adapters" not in hooks:  # that example registers what is installed already
        plugins.append(SimpleNamespace(**hooks))
    make_plugin_manager(plugins)
    assert hooks or plugins


def test_the_adapter_of_the_page_keeps_the_contract_of_adapters(
    run_example: Callable[[str], dict[str, Any]],
) -> None:
    """The page's examples are one program: an adapter, then its test."""
    namespace = run_example("\n".join(examples("writing_an_adapter.md")))
    contracts = [
        value
        for value in namespace.values()
        if inspect.isclass(value) and issubclass(value, AdapterContract) and value is not AdapterContract
    ]
    assert len(contracts) == 1
    promises = [name for name in dir(contracts[0]) if name.startswith("test_")]
    skipped = []
    for promise in promises:
        try:
            getattr(contracts[0](), promise)()
        except SkipTest as reason:
            skipped.append(str(reason))
    assert len(promises) - len(skipped) >= 10
    assert skipped == ["never_spec is not set: no options of this adapter compute everything"]
