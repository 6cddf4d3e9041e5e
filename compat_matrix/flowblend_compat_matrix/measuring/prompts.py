"""Prompts that cells are asked to show, and judges that say whether they did."""

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
    from ..reference import Caption

EMBEDDED = ("reference", "reference-unet")
"""Names of the pairs that ship with this package, which have as many prompts as anybody asks for."""

NUM_WORLD_VIDEOS = 128
"""Real videos on the other side of the Frechet distance."""


class Judge(Protocol):
    """Says how well videos ``[N, F, H, W, 3]`` show their prompts, in the prompts' order."""

    @property
    def description(self) -> str: ...

    def alignment(self, videos: NDArray[np.float32]) -> float:
        """Share of captioned attributes that are right, 0..1."""
        ...

    def num_right(self, videos: NDArray[np.float32], first: int) -> list[tuple[int, int]]:
        """Right and captioned attributes of each video, of which the first one shows prompt number ``first``."""
        ...

    def frechet_distance(self, videos: NDArray[np.float32]) -> float | None:
        """Frechet distance to real videos; ``None`` where there is none to be had."""
        ...


@dataclass(frozen=True)
class PromptSet:
    """Prompts, how many of them fit in one pipeline call, and a judge where the pair has one."""

    texts: tuple[str, ...]
    batch_size: int = 1
    judge: Judge | None = None


class AttributeJudge:
    """The attribute classifier of the reference pair's world, on the captions it is asked about.

    A still is shown to it as a video that stands still; motion is then not asked about, and there is no Frechet
    distance, for the classifier's features are of moving scenes.
    """

    def __init__(self, captions: Sequence[Caption], makes_stills: bool) -> None:
        from ..reference import held_out_videos, load_classifier

        self._classifier = load_classifier()
        self._attributes = [
            [one for one in caption.attributes if not (makes_stills and one.name == "motion")] for caption in captions
        ]
        self._world = None if makes_stills else self._classifier.features(held_out_videos(NUM_WORLD_VIDEOS))

    @property
    def description(self) -> str:
        num_attributes = sum(len(attributes) for attributes in self._attributes)
        if self._world is None:
            return f"attribute classifier of the reference world on stills: {num_attributes} captioned attributes"
        return (
            f"attribute classifier of the reference world: {num_attributes} captioned attributes, Frechet distance of "
            f"{len(self._attributes)} videos to {NUM_WORLD_VIDEOS} real ones in {self._world.shape[1]} features"
        )

    def alignment(self, videos: NDArray[np.float32]) -> float:
        """Share of captioned attributes that are right, of videos ``[N, F, H, W, 3]`` in the captions' order."""
        right, captioned = np.sum(self.num_right(videos, 0), axis=0)
        return float(right / captioned)

    def num_right(self, videos: NDArray[np.float32], first: int) -> list[tuple[int, int]]:
        """Right and captioned attributes of each video, of which the first one shows prompt number ``first``."""
        from ..reference.world import NUM_FRAMES

        if self._world is None:
            videos = np.repeat(videos[:, :1], NUM_FRAMES, axis=1)
        judged = self._classifier.judge(videos, self._attributes[first : first + len(videos)])
        return [(sum(rights), len(rights)) for rights in judged]

    def frechet_distance(self, videos: NDArray[np.float32]) -> float | None:
        """Distance to real videos of the world; ``None`` of one video, which has no spread, and of stills."""
        if self._world is None or len(videos) < 2:
            return None
        return frechet_distance(self._classifier.features(videos), self._world)


_BATCH_SIZE = 16


def own_prompts(preset: PairPreset | None, num_prompts: int, num_seeds: int = 1, first: int = 0) -> PromptSet:
    """Prompts of a pair from number ``first`` on, each ``num_seeds`` times, with a judge where there is one.

    Those of the embedded pairs are captions of scenes that no training saw.

    Raises:
        UsageError: it has none, or fewer.
    """
    if preset is not None and preset.name in EMBEDDED:
        from ..reference import evaluation_captions

        captions = evaluation_captions(first + num_prompts)[first:] * num_seeds
        judge = AttributeJudge(captions, makes_stills=preset.name == "reference-unet")
        return PromptSet(tuple(caption.text for caption in captions), _BATCH_SIZE, judge)
    return PromptSet(
        (preset.example_prompts if preset else ())[: check_num_prompts(preset, num_prompts, 1)] * num_seeds
    )


def check_num_prompts(preset: PairPreset | None, count: int | None, default: int) -> int:
    """Number of a pair's own prompts that are shown, told without loading anything.

    Raises:
        UsageError: it has none, or fewer than ``count``.
    """
    if preset is not None and preset.name in EMBEDDED:
        return count or default
    num_own = len(preset.example_prompts) if preset is not None else 0
    if not num_own:
        raise UsageError("this pair has no prompts of its own. Say what to show with --prompt.")
    if count is not None and count > num_own:
        raise UsageError(f"--prompts {count}: this pair has {num_own} of its own. Give --prompt, or ask for fewer.")
    return count or min(num_own, default)
