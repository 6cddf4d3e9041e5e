"""Bad input: one clear line that says what was asked, what was found and what to do; the right exit code; no traces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

USAGE, FAILURE = 2, 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--schedule", "LQL"], ["LQL", "Q", "denoisers="]),
        (["--schedule", "lsl"], ["lsl", "LSL"]),
        (["--schedule", "L:3,S"], ["L:3,S", "cannot be read"]),
        (["--early", "0.7", "--late", "0.6"], ["0.7", "0.6", "overlap", "at most 1"]),
        (["--early", "1.5"], ["early", "1.5", "from 0 to 1"]),
        (["--steps", "0"], ["--steps", "1"]),
        (["--schedule", "L:20,S:20,L:10"], ["covers 50 steps", "5", "add up"]),
        (["--schedule", "L:3,S:2", "--early", "0.2"], ["explicit boundaries", "Leave them out"]),
        (["--adapter", "uni_pc"], ["uni_pc", "unipc"]),
        (["--adapter", "unipc(steps=5)"], ["steps", "num_inference_steps"]),
        (["--adapter", "unipc(num_inference_steps=-1)"], ["num_inference_steps", "-1"]),
        (["--adapter", "unipc", "--adapter", "flow_euler"], ["unipc", "flow_euler"]),
        (["--reentry", "sometimes"], ["sometimes", "recompute", "keep"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--steps", "many"], ["--steps", "integer"]),
    ],
)
def test_wrong_options(
    flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path, options: list[str], words: list[str]
) -> None:
    result = flowblend(*small_run, *options)
    for word in words:
        assert word in result.error_line
    assert result.code == (FAILURE if options[0] == "--schedule" and options[1] == "LQL" else USAGE)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_an_unknown_pair_names_the_known_ones(flowblend: Callable[..., Any], tmp_path: Path) -> None:
    result = flowblend("run", "--pair", "nonesuch", "--out", tmp_path)
    assert result.code == USAGE
    assert "nonesuch" in result.error_line
    assert "wan2.1-t2v" in result.error_line


@pytest.mark.parametrize(
    ("component", "changes", "words"),
    [
        ("transformer", {"in_channels": 8, "out_channels": 8}, ["channels", "8", "4"]),
        ("transformer", {"text_dim": 24}, ["24", "16"]),
        ("vae", {"latents_mean": [0.5] * 4}, ["latents_mean", "0.5"]),
        ("scheduler", {"prediction_type": "epsilon"}, ["epsilon", "flow for the large one"]),
    ],
)
def test_a_pair_that_shares_no_trajectory(
    flowblend: Callable[..., Any],
    small_run: list[str],
    changed_pair: Callable[..., Path],
    component: str,
    changes: dict[str, Any],
    words: list[str],
) -> None:
    result = flowblend(*small_run, "--small", changed_pair(component, **changes))
    assert result.code == FAILURE
    for word in words:
        assert word in result.error_line


@pytest.mark.parametrize("option", ["--large", "--small"])
def test_a_folder_that_is_no_pipeline(
    flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path, option: str
) -> None:
    (tmp_path / "empty").mkdir()
    result = flowblend(*small_run, option, tmp_path / "empty")
    assert result.code == FAILURE
    assert str(tmp_path / "empty") in result.error_line
    result = flowblend(*small_run, option, tmp_path / "absent")
    assert result.code == FAILURE
    assert "absent" in result.error_line


def test_a_folder_with_pickles_only(
    flowblend: Callable[..., Any], small_run: list[str], changed_pair: Callable[..., Path]
) -> None:
    folder = changed_pair("transformer")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    for option in ("--large", "--small"):
        result = flowblend(*small_run, option, folder)
        assert result.code == FAILURE
        assert "pickle" in result.error_line
        assert "safetensors" in result.error_line


def test_an_output_folder_that_cannot_be_written(
    flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    result = flowblend(*small_run, "--out", tmp_path / "file" / "out")
    assert result.code == FAILURE
    assert "nothing can be written there" in result.error_line
    assert (tmp_path / "file").read_text() == "in the way"


BROKEN = {
    "fails to import": (
        {"unlucky": "raise ImportError('no module named wonders')"},
        ["unlucky", "cannot be imported", "no module named wonders", "FLOWBLEND_BLOCK=unlucky"],
    ),
    "misspelt hook": (
        {"unlucky": "import flowblend_plugins\n@flowblend_plugins.hookimpl\ndef flowblend_stage_enterd(step): pass"},
        ["unlucky", "flowblend_stage_enterd", "flowblend_stage_entered"],
    ),
    "two of one name": (
        {"unlucky": "", "other": ""},
        ["two plugins are named 'same'", "unlucky", "other"],
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_plugins_are_named(tmp_path: Path, kind: str) -> None:
    sources, words = BROKEN[kind]
    for distribution, source in sources.items():
        (tmp_path / f"{distribution}_plugin.py").write_text(source)
        metadata = tmp_path / f"{distribution}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        name = "same" if len(sources) > 1 else distribution
        (metadata / "entry_points.txt").write_text(f"[flowblend_plugins]\n{name} = {distribution}_plugin\n")
    result = subprocess.run(
        [sys.executable, "-m", "flowblend_plugins.cli", "plugins"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == FAILURE
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
