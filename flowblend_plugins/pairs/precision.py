"""Precisions in which denoisers keep their weights, and a warning where they differ."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping

from torch import nn


def precision_of(denoiser: nn.Module) -> str:
    """Precision that holds most of a denoiser's weights: a dtype, or the class of quantised tensors (torchao, GGUF)."""
    counts: Counter[str] = Counter()
    for weight in denoiser.parameters():
        plain = type(weight) is nn.Parameter
        counts[str(weight.dtype).removeprefix("torch.") if plain else type(weight).__name__] += weight.numel()
    return counts.most_common(1)[0][0] if counts else "no weights"


def warn_of_other_precisions(denoisers: Mapping[str, nn.Module]) -> None:
    """Warn where denoisers of one trajectory keep their weights differently: their outputs then jump at a switch."""
    found = {letter: precision_of(denoiser) for letter, denoiser in denoisers.items()}
    if len({*found.values()}) > 1:
        listed = ", ".join(f"{letter} in {precision}" for letter, precision in found.items())
        warnings.warn(
            f"the denoisers keep their weights in different precisions ({listed}). This works, but quantisation then "
            "changes the video at every switch; quantise both alike, or none, to compare schedules.",
            stacklevel=5,
        )
