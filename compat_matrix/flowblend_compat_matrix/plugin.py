"""Contributions of this package, through the same door as a stranger's plugin; importing it is cheap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flowblend_plugins import PairPreset, UsageError, hookimpl
from flowblend_plugins.hookspecs import Metric

from .measuring.metrics import Videos, flicker, high_frequency_error, psnr_db, ssim

if TYPE_CHECKING:  # only the command line needs it
    import typer

    from .reference.similarity import ClassifierSimilarity

_REFERENCE = Path(__file__).parent / "reference"
_WEIGHTS = _REFERENCE / "weights"
_UNET_WEIGHTS = _REFERENCE / "unet" / "weights"
_DISTILLED = _REFERENCE / "distilled"
_STILL_WORDS = frozenset(
    {"a", "and", "over", "circle", "square", "triangle", "cross", "ring", "plain", "striped", "dotted"}
    | {"red", "green", "blue", "yellow", "purple", "white", "gradient", "stripes", "checkers", "blobs"}
)


def _classifier_similarity() -> ClassifierSimilarity:
    from .reference.similarity import ClassifierSimilarity

    return ClassifierSimilarity()


REFERENCE = PairPreset(
    name="reference",
    large=_WEIGHTS / "large",
    small=_WEIGHTS / "small",
    # As reference.CALL_DEFAULTS, which cannot be imported here: loading plugins must not load diffusers.
    call_defaults={
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "num_inference_steps": 20,
        "guidance_scale": 8.0,
        "max_sequence_length": 32,
    },
    source="Trained for this package (docs/reference_pair.md). Boundaries: FlowBlending (arXiv 2512.24724), for WAN.",
    example_prompts=(
        "a red striped circle moving left over checkers",
        "a dotted triangle standing still",
        "a purple cross",
    ),
    vocabulary=_STILL_WORDS | {"moving", "standing", "still", "left", "right", "up", "down"},
    distilled={f"{side}-{steps}": _DISTILLED / f"{side}-{steps}" for side in ("large", "small") for steps in (4, 8)},
    similarity=_classifier_similarity,
)

REFERENCE_UNET = PairPreset(
    name="reference-unet",
    large=_UNET_WEIGHTS / "large",
    small=_UNET_WEIGHTS / "small",
    # As reference.unet.CALL_DEFAULTS, for the same reason.
    call_defaults={"height": 64, "width": 64, "num_inference_steps": 20, "guidance_scale": 7.5},
    source=(
        "Trained for this package (docs/unet_reference_pair.md). Boundaries: FlowBlending (arXiv 2512.24724), for WAN."
    ),
    example_prompts=("a red striped circle over checkers", "a dotted triangle", "a purple cross"),
    vocabulary=_STILL_WORDS,
    similarity=_classifier_similarity,
)


def _flicker(video: Videos, wanted: Videos) -> float:
    """Flicker of the video alone, which the report sets beside large-only's; a still has none."""
    del wanted
    return flicker(video) if len(video) >= 3 else math.nan


@hookimpl
def flowblend_register_pairs() -> list[PairPreset]:
    return [REFERENCE, REFERENCE_UNET]


@hookimpl
def flowblend_register_metrics() -> Mapping[str, Metric]:
    return {"psnr_db": psnr_db, "ssim": ssim, "high_frequency_error": high_frequency_error, "flicker": _flicker}


@hookimpl
def flowblend_register_commands(app: typer.Typer) -> None:
    from .cli.commands import matrix

    app.add_typer(matrix, name="matrix")

    @app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def tune() -> None:
        """Say what takes the place of this former command."""
        raise UsageError(
            "`flowblend tune` is gone: `flowblend plan --min-psnr 25` computes a stack without trials, as good as "
            "1,400 of them found (docs/planning.md). For another pair run `flowblend calibrate forecast` first."
        )
