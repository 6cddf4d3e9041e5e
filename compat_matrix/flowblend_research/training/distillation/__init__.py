"""Distilling the reference denoisers to a few steps without guidance, as LoRAs (docs/distilled_reference.md)."""

from __future__ import annotations

from flowblend_compat_matrix.reference.pair import WEIGHTS

DISTILLED = WEIGHTS.with_name("distilled")
"""The LoRAs that ship: ``large-8``, ``large-4``, ``small-8``, ``small-4``."""
