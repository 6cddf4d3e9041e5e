"""Distilling the reference denoisers to a few steps without guidance, as LoRAs (docs/distilled_reference.md)."""

from __future__ import annotations

from pathlib import Path

DISTILLED = Path(__file__).parents[1] / "distilled"
"""The LoRAs that ship: ``large-8``, ``large-4``, ``small-8``, ``small-4``."""
