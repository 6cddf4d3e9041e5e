"""A bench on the tiny saved pair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import WanPipeline, WanTransformer3DModel

from flowblend_compat_matrix.measuring.bench import Bench
from flowblend_compat_matrix.measuring.prompts import PromptSet

CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 5, "guidance_scale": 5.0}


@pytest.fixture
def make_bench(saved_pair: Path) -> Callable[..., Bench]:
    """A bench on a freshly loaded tiny pair, with whatever is given in place of its usual arguments."""

    def load() -> tuple[Any, Any]:
        small = WanTransformer3DModel.from_pretrained(saved_pair / "small").eval()
        return WanPipeline.from_pretrained(saved_pair / "large"), small

    def make(**changes: Any) -> Bench:
        prompts = PromptSet(("a red circle", "a circle"), batch_size=2)
        return Bench(**({"load": load, "prompts": prompts, "call": CALL} | changes))

    return make
