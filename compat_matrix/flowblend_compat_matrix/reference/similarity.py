"""Similarity of two videos of the embedded pairs to the classifier that was trained on their world."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import load_classifier
from .world import NUM_FRAMES


class ClassifierSimilarity:
    """Cosine similarity of the classifier's features; a still is shown to it as a video that stands still."""

    name = "features of the reference world's classifier"

    def __init__(self) -> None:
        self._classifier = load_classifier()

    def __call__(self, video: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
        both = np.stack([video, reference])
        if both.shape[1] == 1:
            both = np.repeat(both, NUM_FRAMES, axis=1)
        found, wanted = self._classifier.features(both)
        return float(found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted))
