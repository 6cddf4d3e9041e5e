"""Every kind of contribution, and one hook that listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flowblend_plugins as fb

from .clamp import Clamp

ENTERED: list[tuple[int, str]] = []


@fb.hookimpl
def flowblend_register_adapters() -> list[type[fb.Adapter]]:
    return [Clamp]


@fb.hookimpl
def flowblend_register_pairs() -> list[fb.PairPreset]:
    return [fb.PairPreset(name="example_pair", large="example/large", small="example/small", source="nowhere")]


@fb.hookimpl
def flowblend_register_metrics() -> Mapping[str, Any]:
    return {"largest_difference": lambda video, reference: float(abs(video - reference).max())}


@fb.hookimpl
def flowblend_register_commands(app: Any) -> None:
    @app.command("example")
    def example(name: str) -> None:
        """Greet someone."""
        print(f"the example plugin greets {name}")


@fb.hookimpl
def flowblend_stage_entered(step: fb.StepContext) -> None:
    ENTERED.append((step.step_index, step.denoiser))
