"""What the matrix contributes: a pair that matches its weights, metrics that the core accepts, and a cheap import."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from flowblend_compat_matrix.plugin import REFERENCE
from flowblend_compat_matrix.reference import CALL_DEFAULTS, WEIGHTS
from flowblend_plugins.manager import make_plugin_manager, metrics_by_name, pairs_by_name
from flowblend_research.training.text import vocabulary


def test_the_preset_says_what_the_reference_package_says() -> None:
    assert pairs_by_name(make_plugin_manager())["reference"] is REFERENCE
    assert dict(REFERENCE.call_defaults) == CALL_DEFAULTS
    assert (REFERENCE.large, REFERENCE.small) == (WEIGHTS / "large", WEIGHTS / "small")


def test_the_example_prompts_use_only_words_that_the_pair_knows() -> None:
    words = set(vocabulary())
    assert REFERENCE.example_prompts
    for prompt in REFERENCE.example_prompts:
        assert set(prompt.split()) <= words, prompt


def test_metrics_take_a_video_and_a_reference() -> None:
    video = np.random.default_rng(0).random((3, 16, 16, 3), dtype=np.float32)
    found = {name: metric(video, video) for name, metric in metrics_by_name(make_plugin_manager()).items()}
    assert found["psnr_db"] == float("inf")
    assert found["ssim"] == 1.0
    assert found["high_frequency_error"] == 0.0
    assert found["flicker"] > 0.0


def test_loading_the_plugin_and_its_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, flowblend_compat_matrix.plugin, flowblend_compat_matrix.cli.commands;"
        "heavy = {'diffusers', 'transformers', 'jinja2', 'av', 'skimage', 'scipy'} & sys.modules.keys();"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, f"loaded: {result.stderr}"
