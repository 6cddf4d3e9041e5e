"""Sizes of the T5 text encoders that the published video pairs read prompts with."""

from __future__ import annotations

from ..types import Keywords

T5_XXL: Keywords = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}
