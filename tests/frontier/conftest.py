"""A tiny bench to measure on, and points that are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flowblend_compat_matrix.measuring.bench import Bench
from flowblend_compat_matrix.measuring.prompts import PromptSet
from flowblend_plugins.pairs.loading import load_denoiser
from flowblend_plugins.pairs.open import load_pipeline
from flowblend_research.frontier.race import Configuration, Point

CALL = {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 5.0, "num_inference_steps": 10}


@pytest.fixture
def bench(saved_pair: Path) -> Bench:
    """Random weights, two prompts, ten steps."""

    def load() -> tuple[object, object]:
        pipe = load_pipeline(saved_pair / "large")
        return pipe, load_denoiser(str(saved_pair / "small"), pipe, "transformer")

    return Bench(load=load, prompts=PromptSet(("a red circle", "a circle"), 1), call=CALL, seed=7)  # type: ignore[arg-type]


@pytest.fixture
def point() -> Callable[..., Point]:
    """A point at a speed and a PSNR; its FLOPs fall as its speed rises unless they are given."""

    def make(
        speedup: float, psnr_db: float, text: str = "", flops_fraction: float | None = None, alignment: float = 1.0
    ) -> Point:
        configuration = Configuration(text or f"L:{round(100 * speedup)},S:{round(100 * psnr_db)}")
        flops = 1 / speedup if flops_fraction is None else flops_fraction
        return Point(configuration, speedup, (speedup, speedup), flops, psnr_db, 1.0, alignment, 5.0)

    return make
