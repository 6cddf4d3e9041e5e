"""What the cells are asked to show, and who can say whether they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from flowblend_plugins.errors import UsageError
from flowblend_plugins.pairs.preset import PairPreset

from .metrics import frechet_distance

if TYPE_CHECKING:
    from ..reference import AttributeClassifier, Caption

NUM_WORLD_VIDEOS = 128
"""Real videos on the other side of the Frechet distance."""


class Judge(Protocol):
    """Says how well videos ``[N, F, H, W, 3]`` show their prompts, in the prompts' order."""

    @property
    def description(self) -> str: ...

    def alignment(self, videos: NDArray[np.float32]) -> float:
        """Share of captioned attributes that are right, 0..1."""
        ...

    def frechet_distance(self, videos: NDArray[np.float32]) -> float | None:
        """To real videos; ``None`` where there is none to be had."""
        ...


@dataclass(frozen=True)
class PromptSet:
    """Prompts, how many of them fit in one pipeline call, and a judge where the pair has one."""

    texts: tuple[str, ...]
    batch_size: int = 1
    judge: Judge | None = None

    @property
    def num_batches(self) -> int:
        """Pipeline calls that make one video for every prompt."""
        return -(-len(self.texts) // self.batch_size)


class AttributeJudge:
    """The attribute classifier of the reference pair's world, on the captions it is asked about."""

    def __init__(self, classifier: AttributeClassifier, captions: Sequence[Caption]) -> None:
        from ..reference import held_out_videos

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


class StillsJudge:
    """The same classifier on stills: it is shown each as a video that stands still, and motion is not asked about."""

    def __init__(self, classifier: AttributeClassifier, captions: Sequence[Caption]) -> None:
        self._classifier = classifier
        self._attributes = [[one for one in caption.attributes if one.name != "motion"] for caption in captions]

    @property
    def description(self) -> str:
        num_attributes = sum(len(attributes) for attributes in self._attributes)
        return f"attribute classifier of the reference world on stills: {num_attributes} captioned attributes"

    def alignment(self, videos: NDArray[np.float32]) -> float:
        """Share of captioned attributes that are right, of stills ``[N, 1, H, W, 3]`` in the captions' order."""
        from ..reference.world import NUM_FRAMES

        return self._classifier.alignment(np.repeat(videos[:, :1], NUM_FRAMES, axis=1), self._attributes)

    def frechet_distance(self, videos: NDArray[np.float32]) -> None:
        """The classifier's features are of moving scenes, so of stills there is none."""
        del videos


_BATCH_SIZE = 16


def _reference_prompts(num_prompts: int, num_seeds: int, makes_stills: bool, first: int = 0) -> PromptSet:
    """Captions of scenes that no training saw, with the classifier as judge."""
    from ..reference import evaluation_captions, load_classifier

    captions = evaluation_captions(first + num_prompts)[first:] * num_seeds
    judge = (StillsJudge if makes_stills else AttributeJudge)(load_classifier(), captions)
    return PromptSet(tuple(caption.text for caption in captions), _BATCH_SIZE, judge)


def reference_prompts(num_prompts: int) -> PromptSet:
    """Captions for the embedded pair that makes videos."""
    return _reference_prompts(num_prompts, 1, makes_stills=False)


def prompts_from(preset: PairPreset | None, first: int, num_prompts: int) -> PromptSet:
    """A pair's prompts from number ``first`` on, for who must not meet those that others measure with.

    Raises:
        UsageError: the pair has none of its own, or too few.
    """
    if preset is not None and preset.name in ("reference", "reference-unet"):
        return _reference_prompts(num_prompts, 1, makes_stills=preset.name == "reference-unet", first=first)
    own = () if preset is None else preset.example_prompts
    if len(own) < num_prompts:
        raise UsageError(f"this pair has {len(own)} prompts of its own, and {num_prompts} are needed. Give --prompt.")
    return PromptSet(own[:num_prompts])


def own_prompts(preset: PairPreset | None, num_prompts: int, num_seeds: int) -> PromptSet:
    """A pair's own prompts, each so many times, with a judge where there is one.

    Raises:
        UsageError: it has none, or fewer.
    """
    if preset is not None and preset.name in ("reference", "reference-unet"):
        return _reference_prompts(num_prompts, num_seeds, makes_stills=preset.name == "reference-unet")
    own = preset.example_prompts if preset is not None else ()
    if not own:
        raise UsageError("this pair has no prompts of its own. Say what to show with --prompt.")
    if num_prompts > len(own):
        raise UsageError(f"--prompts {num_prompts}: this pair has {len(own)} of its own.")
    return PromptSet(own[:num_prompts] * num_seeds)
