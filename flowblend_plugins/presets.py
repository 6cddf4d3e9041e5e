"""Data on pairs of denoisers that share one latent space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .schedule import DEFAULT_EARLY, DEFAULT_LATE


@dataclass(frozen=True, kw_only=True)
class PairPreset:
    """A large pipeline, its small denoiser, and how they are meant to be sampled.

    Attributes:
        name: what ``--pair`` takes.
        large: hub id or folder of the large pipeline.
        small: hub id or folder of the small pipeline, or of its denoiser alone.
        early, late: stage boundaries as fractions of the steps.
        call_defaults: keyword arguments of the pipeline call (size, frames, steps, guidance scale).
        source: where the sizes and boundaries come from.
        example_prompts: prompts that the pair is known to understand.
    """

    name: str
    large: str | Path
    small: str | Path
    source: str
    early: float = DEFAULT_EARLY
    late: float = DEFAULT_LATE
    call_defaults: Mapping[str, Any] = field(default_factory=dict)
    example_prompts: tuple[str, ...] = ()
