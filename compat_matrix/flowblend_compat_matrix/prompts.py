"""What the cells are asked to show, and who can say whether they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .metrics import frechet_distance

if TYPE_CHECKING:
    from .reference import AttributeClassifier, Caption

NUM_WORLD_VIDEOS = 128
"""Real videos on the other side of the Frechet distance."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts, how many of them fit in one pipeline call, and a judge where the pair has one."""

    texts: tuple[str, ...]
    batch_size: int = 1
    judge: AttributeJudge | None = None

    @property
    def num_batches(self) -> int:
        """Pipeline calls that make one video for every prompt."""
        return -(-len(self.texts) // self.batch_size)


class AttributeJudge:
    """The attribute classifier of the reference pair's world, on the captions it is asked about."""

    def __init__(self, classifier: AttributeClassifier, captions: Sequence[Caption]) -> None:
        from .reference import held_out_videos

        self._classifier = classifier
        self._attributes = [caption.attributes for caption in captions]
        self._world = classifier.features(held_out_videos(NUM_WORLD_VIDEOS))

    @property
    def description(self) -> str:
        num_attributes = sum(len(attributes) for attributes in self._attributes)
        return (
            f"attribute classifier of the reference world: {num_attributes} captioned attributes, Frechet distance of "
            f"{len(self._attributes)} videos to {NUM_WORLD_VIDEOS} real ones in {self._world.shape[1]} features"
        )

    def alignment(self, videos: NDArray[np.float32]) -> float:
        """Share of captioned attributes that are right, of videos ``[N, F, H, W, 3]`` in the captions' order."""
        return self._classifier.alignment(videos, self._attributes)

    def frechet_distance(self, videos: NDArray[np.float32]) -> float | None:
        """To real videos of the world; ``None`` of one video, which has no spread."""
        if len(videos) < 2:
            return None
        return frechet_distance(self._classifier.features(videos), self._world)


def reference_prompts(num_prompts: int) -> PromptSet:
    """Captions of scenes that no training saw, with the classifier as judge."""
    from .reference import evaluation_captions, load_classifier

    captions = evaluation_captions(num_prompts)
    judge = AttributeJudge(load_classifier(), captions)
    return PromptSet(tuple(caption.text for caption in captions), batch_size=16, judge=judge)
