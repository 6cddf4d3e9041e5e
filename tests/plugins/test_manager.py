"""Loading plugins: what is wrong with one is one clear line that names it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from flowblend_plugins import Adapter, AdapterError, AdapterTraits, PairPreset, PluginError, hookimpl
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.manager import (
    adapters_by_name,
    make_adapters,
    make_plugin_manager,
    metrics_by_name,
    pairs_by_name,
)
from flowblend_plugins.testing import RecordingPlugin


@dataclass(frozen=True, kw_only=True)
class Idle(Adapter):
    name: ClassVar[str] = "idle"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.FEATURE_CACHING)

    def attach(self, target: Any) -> nullcontext[None]:
        return nullcontext()


def plugin(name: str, **hooks: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(__name__=name, **{hook: hookimpl(function) for hook, function in hooks.items()})


def refusal(*plugins: Any) -> str:
    with pytest.raises(PluginError) as refused:
        make_plugin_manager(plugins)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_our_own_adapters_come_in_through_the_entry_points() -> None:
    manager = make_plugin_manager()
    assert {"unipc", "flow_euler", "dpmpp_2m"} <= adapters_by_name(manager).keys()
    assert manager.origins["adapters"].distribution == "flowblend-plugins"


def test_each_call_makes_a_manager_of_its_own() -> None:
    one = make_plugin_manager([plugin("mine", flowblend_register_adapters=lambda: [Idle])])
    assert "idle" in adapters_by_name(one)
    assert "idle" not in adapters_by_name(make_plugin_manager())


# -- distributions that are broken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('line one\\nline two')", "RuntimeError: line one line two"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def", "SyntaxError"),
    ],
)
def test_a_plugin_that_fails_to_import(install: Callable[..., None], source: str, cause: str) -> None:
    install("broken-dist", "broken", source)
    message = refusal()
    assert message.startswith(f"plugin 'broken' of broken-dist 2.5 cannot be imported: {cause}")
    assert message.endswith("Fix or uninstall broken-dist, or set FLOWBLEND_BLOCK=broken to run without it.")


def test_two_distributions_with_one_plugin_name(install: Callable[..., None]) -> None:
    install("first-dist", "twin", "")
    install("second-dist", "twin", "")
    message = refusal()
    assert "two plugins are named 'twin'" in message
    assert "first-dist 2.5" in message
    assert "second-dist 2.5" in message
    assert "FLOWBLEND_BLOCK=twin" in message


def test_a_blocked_plugin_is_not_even_imported(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install("broken-dist", "broken", "raise RuntimeError")
    install("good-dist", "good", "")
    monkeypatch.setenv("FLOWBLEND_BLOCK", " broken , adapters,never_installed")
    manager = make_plugin_manager()
    assert "good" in manager.origins
    assert not {"broken", "adapters"} & manager.origins.keys()
    assert "unipc" not in adapters_by_name(manager)


MISSPELT = """
from flowblend_plugins import hookimpl

@hookimpl
def flowblend_stage_enterd(step):
    pass
"""


def test_a_misspelt_hook_of_a_distribution(install: Callable[..., None]) -> None:
    install("typo-dist", "typo", MISSPELT)
    message = refusal()
    assert message.startswith("plugin 'typo' of typo-dist 2.5 implements flowblend_stage_enterd, which is no hook.")
    assert "Did you mean flowblend_stage_entered?" in message


# -- objects that break the contract -------------------------------------------------------------------------------


def test_a_hook_with_an_argument_that_it_does_not_have() -> None:
    message = refusal(plugin("mine", flowblend_route=lambda step, sigma: None))
    assert "plugin 'mine': flowblend_route asks for sigma, but its arguments are: step." in message


def test_a_hook_may_leave_arguments_out_and_have_defaults_of_its_own() -> None:
    make_plugin_manager([plugin("mine", flowblend_stage_entered=lambda denoiser, verbose=False: None)])


def test_a_hook_without_the_marker_would_never_be_called_and_is_refused() -> None:
    message = refusal(SimpleNamespace(__name__="mine", flowblend_route=lambda step: None))
    assert "plugin 'mine': flowblend_route is not marked as an implementation" in message
    assert "flowblend_plugins.hookimpl" in message


def test_one_object_twice() -> None:
    recorder = RecordingPlugin()
    message = refusal(recorder, recorder)
    assert "plugin 'RecordingPlugin' and plugin 'RecordingPlugin_2' are the same object" in message


def test_two_objects_of_one_kind_are_two_plugins() -> None:
    manager = make_plugin_manager([RecordingPlugin(), RecordingPlugin()])
    assert {"RecordingPlugin", "RecordingPlugin_2"} <= manager.origins.keys()


PAIR = PairPreset(name="twin", large="a", small="b", source="here")


@pytest.mark.parametrize(
    ("hook", "contribution", "what"),
    [
        ("flowblend_register_adapters", [Idle], "two adapters are named 'idle'"),
        ("flowblend_register_pairs", [PAIR], "two pairs are named 'twin'"),
        ("flowblend_register_metrics", {"psnr_of_mine": max}, "two metrics are named 'psnr_of_mine'"),
    ],
)
def test_one_name_from_two_plugins_names_both(hook: str, contribution: Any, what: str) -> None:
    message = refusal(plugin("one", **{hook: lambda: contribution}), plugin("two", **{hook: lambda: contribution}))
    assert what in message
    assert "plugin 'one'" in message
    assert "plugin 'two'" in message


def test_contributions_are_found_by_name() -> None:
    mine = plugin(
        "mine",
        flowblend_register_adapters=lambda: iter([Idle]),
        flowblend_register_pairs=lambda: [PAIR],
        flowblend_register_metrics=lambda: {"largest": max},
    )
    manager = make_plugin_manager([mine, RecordingPlugin()])
    assert adapters_by_name(manager)["idle"] is Idle
    assert pairs_by_name(manager)["twin"] is PAIR
    assert metrics_by_name(manager)["largest"] is max


@dataclass(frozen=True, kw_only=True)
class _BadName(Idle):
    name: ClassVar[str] = "two words"


@dataclass(frozen=True, kw_only=True)
class _NoTraits(Idle):
    traits: ClassVar[Any] = None


@dataclass(frozen=True, kw_only=True)
class _NoAttach(Adapter):
    name: ClassVar[str] = "no_attach"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.FEATURE_CACHING)


@dataclass(frozen=True, kw_only=True)
class _UnreadableType(Idle):
    threshold: NotImportedHere = 0.1  # type: ignore[name-defined]  # noqa: F821


class _NoDataclass(Adapter):
    name = "no_dataclass"
    traits = AdapterTraits(family=Family.FEATURE_CACHING)

    def attach(self, target: Any) -> nullcontext[None]:
        return nullcontext()


@pytest.mark.parametrize(
    ("hook", "contribution", "expected"),
    [
        ("flowblend_register_adapters", [Idle()], "no subclass of flowblend_plugins.Adapter"),
        ("flowblend_register_adapters", [_BadName], "its name is no Python identifier"),
        ("flowblend_register_adapters", [_NoTraits], "its traits are no AdapterTraits"),
        ("flowblend_register_adapters", [_NoAttach], "it does not implement attach"),
        ("flowblend_register_adapters", [_UnreadableType], "the types of its options cannot be read (NameError"),
        ("flowblend_register_adapters", [_NoDataclass], "it is no frozen dataclass"),
        ("flowblend_register_adapters", Idle, "flowblend_register_adapters returned"),
        ("flowblend_register_pairs", ["wan"], "registers 'wan' as a pair, expected a PairPreset"),
        ("flowblend_register_metrics", ["psnr"], "expected a mapping of names to functions"),
        ("flowblend_register_metrics", {"psnr": 1.0}, "expected a mapping of names to functions"),
    ],
)
def test_a_contribution_of_the_wrong_kind(hook: str, contribution: Any, expected: str) -> None:
    message = refusal(plugin("mine", **{hook: lambda: contribution}))
    assert "plugin 'mine'" in message
    assert expected in message


def test_a_register_hook_that_raises() -> None:
    def fail() -> None:
        raise KeyError("weights")

    message = refusal(plugin("mine", flowblend_register_pairs=fail))
    assert message.startswith("plugin 'mine' fails in flowblend_register_pairs: KeyError: 'weights'.")


def test_adapters_from_texts_and_objects() -> None:
    manager = make_plugin_manager([plugin("mine", flowblend_register_adapters=lambda: [Idle])])
    given = Idle()
    assert make_adapters(manager, ["idle", given]) == (Idle(), given)
    with pytest.raises(AdapterError, match="adapter 3: expected a text"):
        make_adapters(manager, [3])  # type: ignore[list-item]
