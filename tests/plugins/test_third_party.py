"""A stranger's distribution: really built, really installed, and used in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "example_plugin"


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(EXAMPLE, folder / "source")
    built = python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    done = python("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", target, wheel)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def seen(installed: Path) -> dict[str, Any]:
    used = python(Path(__file__).with_name("use_example_plugin.py"), PYTHONPATH=str(installed))
    assert used.returncode == 0, used.stderr
    return json.loads(used.stdout.splitlines()[-1])


def test_it_is_found_where_it_was_installed(seen: dict[str, Any], installed: Path) -> None:
    assert seen["origin"] == "plugin 'example' of flowblend-example 1.2.3"
    assert Path(seen["module"]).is_relative_to(installed)


def test_every_kind_of_contribution_arrives(seen: dict[str, Any]) -> None:
    assert {"clamp", "unipc"} <= set(seen["adapters"])
    assert seen["pair"] == "example/large"
    assert seen["metric"] == 3.0
    assert seen["command"] == "the example plugin greets you"


def test_its_adapter_is_the_technique_by_hand_and_leaves_nothing(seen: dict[str, Any]) -> None:
    assert seen["equals_by_hand"]
    assert seen["changed_something"]
    assert seen["restored"]


def test_its_hook_hears_the_switches(seen: dict[str, Any]) -> None:
    assert seen["entered"] == [[0, "L"], [4, "S"], [8, "L"]]


def test_it_is_gone_when_blocked_and_where_it_is_not_installed(installed: Path) -> None:
    code = "from flowblend_plugins.manager import *; print('clamp' in adapters_by_name(make_plugin_manager()))"
    assert python("-c", code, PYTHONPATH=str(installed)).stdout.split() == ["True"]
    assert python("-c", code, PYTHONPATH=str(installed), FLOWBLEND_BLOCK="example").stdout.split() == ["False"]
    assert python("-c", code).stdout.split() == ["False"]


def refusal(*folders: Path) -> str:
    code = "from flowblend_plugins.manager import *; make_plugin_manager()"
    refused = python("-c", code, PYTHONPATH=os.pathsep.join(map(str, folders)))
    assert refused.returncode == 1
    message = refused.stderr.splitlines()[-1]
    assert "flowblend-example 1.2.3" in message
    assert "flowblend-fork 1.2.3" in message
    return message


def fork_of(installed: Path, folder: Path, module: str) -> Path:
    """The same code under another distribution and plugin name."""
    fork = Path(shutil.copytree(installed, folder))
    (fork / "flowblend_example").rename(fork / module)
    (metadata,) = fork.glob("*.dist-info")
    for name, old, new in (
        ("METADATA", "flowblend-example", "flowblend-fork"),
        ("entry_points.txt", "example = flowblend_example", f"fork = {module}"),
    ):
        (metadata / name).write_text((metadata / name).read_text().replace(old, new))
    metadata.rename(fork / "flowblend_fork-1.2.3.dist-info")
    return fork


def test_a_fork_beside_it_has_an_adapter_of_one_name_and_both_are_named(installed: Path, tmp_path: Path) -> None:
    message = refusal(installed, fork_of(installed, tmp_path / "fork", "flowblend_fork"))
    assert "PluginError: two adapters are named 'clamp'" in message


def test_a_fork_that_kept_the_module_name_is_the_same_plugin_and_both_are_named(
    installed: Path, tmp_path: Path
) -> None:
    message = refusal(installed, fork_of(installed, tmp_path / "fork", "flowblend_example"))
    assert "are the same object" in message
