"""A tiny pair that takes prompts, as ``flowblend_plugins.calibration.measuring`` wants it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowblend_compat_matrix.measuring.metrics import high_frequency_error, ssim
from flowblend_plugins.calibration.measuring import Order
from flowblend_plugins.calibration.similarity import NamedSimilarity
from flowblend_plugins.pairs.open import load_pipeline

SSIM = NamedSimilarity("ssim", ssim)
ARTEFACT = NamedSimilarity("high_frequency_error", high_frequency_error)
CALL = {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 5.0}


@pytest.fixture
def make_order(saved_pair: Path) -> Callable[..., Order]:
    """Orders on a freshly loaded pair of random weights; two prompts."""
    pipe = load_pipeline(saved_pair / "large")
    pipe.set_progress_bar_config(disable=True)

    def make(num_inference_steps: int = 10, small: Any = None, **changes: Any) -> Order:
        given = {"prompts": ("a red circle", "a circle"), "pair": "tiny", "seed": 3} | changes
        call = CALL | {"num_inference_steps": num_inference_steps}
        return Order(pipe=pipe, small=small or str(saved_pair / "small"), **{"call": call, **given})

    return make
