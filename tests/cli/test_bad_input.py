"""Bad input: one clear line that says what was asked, what was found and what to do; the right exit code; no traces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

USAGE, FAILURE = 2, 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--schedule", "LQL"], ["'LQL'", "denoiser Q", "L (large), S (small)"]),
        (["--schedule", "LS"], ["'LS'", "LSL"]),
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
        (["--adapter", "unipc(num_inference_steps=6)"], ["--steps 5", "num_inference_steps=6", "Leave one out"]),
        (["--height", "7"], ["WanPipeline refuses", "7", "divisible by 16"]),
        (["--seed", "-1"], ["--seed", "0"]),
        (["--fps", "inf"], ["--fps", "1000"]),
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
    assert result.code == USAGE
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_large_pipeline_needs_a_small_one(flowblend: Callable[..., Any], saved_pair: Path, tmp_path: Path) -> None:
    alone = ("run", "--large", saved_pair / "large", "--out", tmp_path / "out")
    result = flowblend(*alone, "--prompt", "a red circle")
    assert result.code == USAGE
    assert "--small" in result.error_line
    result = flowblend(*alone, "--schedule", "LLL")  # which calls no small one, but says nothing of what to show
    assert result.code == USAGE
    assert "--prompt" in result.error_line


def test_more_frames_than_there_is_memory(flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path) -> None:
    result = flowblend(*small_run, "--num-frames", str(4 * 10**11 + 1))
    assert result.code == FAILURE
    assert "out of memory" in result.error_line
    assert "fewer frames" in result.error_line
    assert list((tmp_path / "out").iterdir()) == []


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


def test_damaged_weights(flowblend: Callable[..., Any], small_run: list[str], saved_pair: Path, tmp_path: Path) -> None:
    for damage, words in ((_cut_off, "Unable to load weights"), (_without_one_tensor, "incomplete")):
        folder = tmp_path / damage.__name__
        shutil.copytree(saved_pair / "large", folder)
        damage(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        result = flowblend(*small_run, "--large", folder)
        assert result.code == FAILURE
        for word in (str(folder), "transformer", words):
            assert word in result.error_line


def _cut_off(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:2000])


def _without_one_tensor(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors["proj_out.weight"]
    save_file(tensors, weights)


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


@pytest.fixture
def broken_plugins(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """An environment in which these plugins are installed beside ours."""
    sources, _ = BROKEN[request.param]
    for distribution, source in sources.items():
        (tmp_path / f"{distribution}_plugin.py").write_text(source)
        metadata = tmp_path / f"{distribution}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        name = "same" if len(sources) > 1 else distribution
        (metadata / "entry_points.txt").write_text(f"[flowblend_plugins]\n{name} = {distribution}_plugin\n")
    return os.environ | {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize(
    ("broken_plugins", "words"), [(kind, BROKEN[kind][1]) for kind in BROKEN], indirect=["broken_plugins"]
)
def test_broken_plugins_are_named(broken_plugins: dict[str, str], words: list[str]) -> None:
    result = _in_a_process("plugins", env=broken_plugins)
    assert result.returncode == FAILURE
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("broken_plugins", ["fails to import"], indirect=True)
def test_the_doctor_sees_a_broken_plugin_and_does_not_die_of_it(broken_plugins: dict[str, str]) -> None:
    result = _in_a_process("doctor", "--json", env=broken_plugins)
    assert result.returncode == FAILURE, result.stderr
    findings = {finding["what"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert findings["plugins"]["state"] == "broken"
    assert "no module named wonders" in findings["plugins"]["detail"]
    assert findings["torch"]["state"] == "ok"
    assert _in_a_process("--version", env=broken_plugins).returncode == 0


def test_the_traceback_is_there_for_those_who_ask(tmp_path: Path) -> None:
    arguments = ("run", "--pair", "nonesuch", "--out", str(tmp_path))
    result = _in_a_process(*arguments, env=os.environ | {"FLOWBLEND_TRACEBACK": "1"})
    assert "Traceback" in result.stderr
    assert "Traceback" not in _in_a_process(*arguments, env=dict(os.environ)).stderr


def _in_a_process(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowblend_plugins.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)
