"""What makes two denoisers blendable, and loading one from where the user keeps it."""

from __future__ import annotations

from typing import Any

from torch import nn

from .errors import PairError


def load_denoiser(source: Any, pipe: Any, slot: str) -> nn.Module:
    """A denoiser from a hub id, a folder, a loaded pipeline or a loaded denoiser."""
    if isinstance(source, nn.Module):
        return source
    raise PairError(f"small={source!r}: not supported yet")


def check_blendable(pipe: Any, slot: str, letter: str, candidate: nn.Module, source: Any) -> None:
    """Refuse a denoiser that cannot continue the large one's trajectory, naming every difference."""
