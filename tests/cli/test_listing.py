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

import flowblend_plugins
from flowblend_plugins import PairPreset, __version__
from flowblend_plugins.api import enable
from flowblend_plugins.cli import doctor
from flowblend_plugins.manager import make_plugin_manager
from flowblend_plugins.step import Outcome

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
    assert findings["a blended generation"]["state"] == "ok"
    assert "pytest" not in findings  # which only the tests need
    assert "FlowBlending works here." in flowblend("doctor").out


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, flowblend: Callable[..., Any]) -> None:
    wanted = ["torch>=2", "nonesuch>=3", "pluggy<1", "absent; extra == 'more'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    result = flowblend("doctor", "--json")
    assert result.code == 1
    states = {finding["what"]: finding["state"] for finding in json.loads(result.out)["findings"]}
    assert (states["torch"], states["nonesuch"], states["pluggy"]) == ("ok", "broken", "broken")
    assert states.get("absent") != "broken"
    assert "pip install 'nonesuch>=3'" in result.out
    assert "does not work here" in flowblend("doctor").out


@pytest.mark.parametrize(
    ("lost", "found"),
    [
        ("_reset_stateful_cache", ["diffusers' cache hooks"]),
        ("cache_context", ["diffusers' cache hooks", "a blended generation"]),
    ],
)
def test_doctor_notices_a_diffusers_that_moved(
    monkeypatch: pytest.MonkeyPatch, flowblend: Callable[..., Any], lost: str, found: list[str]
) -> None:
    monkeypatch.delattr(f"diffusers.models.cache_utils.CacheMixin.{lost}")
    result = flowblend("doctor", "--json")
    assert result.code == 1
    broken = {f["what"]: f["detail"] for f in json.loads(result.out)["findings"] if f["state"] == "broken"}
    assert list(broken) == found
    assert all(lost in detail for detail in broken.values())


def test_an_absent_pair_is_no_broken_core(tmp_path: Path) -> None:
    pair = PairPreset(name="p", large=tmp_path / "large", small=tmp_path / "small", source="here")
    finding = doctor._pair(pair)
    assert finding.state == "missing"
    assert str(tmp_path / "large") in finding.detail


def test_the_doctor_says_which_pairs_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pair = PairPreset(name="p", large="some/large", small="some/small", source="here")
    assert doctor._pair(pair).state == "missing"
    assert "HF_HUB_OFFLINE forbids" in doctor._pair(pair).detail
    for name in ("large", "small"):
        snapshot = tmp_path / f"models--some--{name}" / "snapshots" / "1" / "transformer"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").touch()
    assert doctor._pair(pair).state == "ok"


def test_plugins_are_one_line_each(flowblend: Callable[..., Any]) -> None:
    lines = flowblend("plugins").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
    for row in json.loads(flowblend("plugins", "--json").out)["adapters"]:
        assert sum(line.split()[:1] == [row["name"]] for line in lines) == 1
        told = flowblend("plugins", row["name"]).out
        assert f"Page: {row['page']}" in told
        assert row["name"] in (PAGE.parents[1] / row["page"]).read_text(encoding="utf-8")
        assert all(f"  {option}=" in told for option in row["options"])
    assert "Did you mean mag_cache" in flowblend("plugins", "mag").error_line
    assert "Wan-AI/Wan2.1-T2V-14B-Diffusers" in flowblend("plugins", "wan2.1-t2v").out


def test_version(flowblend: Callable[..., Any]) -> None:
    assert flowblend("--version").out.strip() == f"flowblend-plugins {__version__}"


def test_help_loads_no_torch() -> None:
    """Loading torch and diffusers takes seconds, which a user who only asks should not wait."""
    program = (
        "import sys; from flowblend_plugins.cli import run; run(['--help']); run(['matrix', 'run', '--help']); "
        "heavy = {'torch', 'diffusers', 'transformers', 'av', 'matplotlib', 'skimage'}; print(heavy & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip().endswith("set()"), result.stdout + result.stderr


def test_everything_the_package_names_is_there() -> None:
    assert flowblend_plugins.Outcome is Outcome  # an alias of typing's Literal has typing for its module
    for name in {*flowblend_plugins.__all__} - {"Outcome"}:
        assert getattr(flowblend_plugins, name).__module__.startswith(("flowblend_plugins", "pluggy"))
    assert {*flowblend_plugins.__all__} <= {*dir(flowblend_plugins)}
    assert flowblend_plugins.enable is enable
    with pytest.raises(AttributeError, match="'nonesuch'"):
        _ = flowblend_plugins.nonesuch


def test_brackets_in_help_are_shown() -> None:
    """Rich would take them for markup and swallow them."""
    assert "[default: the pair's]" in BLOCKS["run"]


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
    shown = [info for info in app.registered_commands if not info.hidden]
    commands = {info.name or info.callback.__name__ for info in shown if info.callback}
    groups = {info.name for info in app.registered_groups}
    assert commands <= set(BLOCKS)
    assert all(any(block.startswith(str(group)) for block in BLOCKS) for group in groups)


def _plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]
