"""The embedded reference pair: two truly trained Wan denoisers, small enough to ship, and a judge of what they make.

>>> from flowblend_compat_matrix.reference import CALL_DEFAULTS, load_pair
>>> pair = load_pair()
>>> frames = pair.pipeline("a red circle moving left", **CALL_DEFAULTS).frames[0]  # doctest: +SKIP
"""

from __future__ import annotations

from .classifier import AttributeClassifier
from .pair import (
    CALL_DEFAULTS,
    WEIGHTS,
    ReferencePair,
    evaluation_captions,
    held_out_videos,
    load_classifier,
    load_pair,
)
from .world import Attribute, Caption

__all__ = [
    "CALL_DEFAULTS",
    "WEIGHTS",
    "Attribute",
    "AttributeClassifier",
    "Caption",
    "ReferencePair",
    "evaluation_captions",
    "held_out_videos",
    "load_classifier",
    "load_pair",
]
