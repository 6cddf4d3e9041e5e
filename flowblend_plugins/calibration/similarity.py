"""Similarity of two videos by the features of an image model, or by SSIM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import PairError

Video = NDArray[np.float32]


class Similarity(Protocol):
    """Similarity of a video to another, both ``[F, H, W, 3]`` in 0..1; 1 for equal ones.

    A pair brings its own with :attr:`flowblend_plugins.PairPreset.similarity`.
    """

    @property
    def name(self) -> str:
        """Name that the calibration file gives it."""
        ...

    def __call__(self, video: Video, reference: Video) -> float: ...


@dataclass(frozen=True)
class NamedSimilarity:
    """A similarity that is a plain function."""

    name: str
    function: Callable[[Video, Video], float]

    def __call__(self, video: Video, reference: Video) -> float:
        return self.function(video, reference)


class FeatureSimilarity:
    """Cosine similarity of the features of an image model (DINO, CLIP), frame by frame, the mean over frames.

    Args:
        source: hub id or folder of a transformers model with safetensors weights and an image processor.

    Raises:
        PairError: it cannot be loaded, or is no model of images.
    """

    def __init__(self, source: str | Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        from ..pairs.sources import is_hub_id

        where = str(source) if is_hub_id(source) else str(Path(source).expanduser())
        is_local = not is_hub_id(source)
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(where, local_files_only=is_local)
            self._model: Any = AutoModel.from_pretrained(where, local_files_only=is_local, use_safetensors=True).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            cause = str(error).strip().split("\n")[0].rstrip(" .")
            raise PairError(
                f"{source} cannot be loaded as an image model: {cause}. Give a hub id or a folder of a model such as "
                "DINOv2 or CLIP, with its preprocessor_config.json and safetensors weights."
            ) from error
        self.name: str = f"{type(self._model).__name__} features ({Path(where).name if is_local else source})"

    def __call__(self, video: Video, reference: Video) -> float:
        wanted, found = self._features(reference), self._features(video)
        products = (wanted * found).sum(axis=1)
        return float(np.mean(products / np.linalg.norm(wanted, axis=1) / np.linalg.norm(found, axis=1)))

    def _features(self, video: Video) -> NDArray[np.float64]:
        import torch

        frames = [np.ascontiguousarray((frame.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)) for frame in video]
        with torch.no_grad():
            inputs = self._processor(images=frames, return_tensors="pt")
            # CLIP's own features are of the space it shares with text; the others pool their last layer.
            image_features = getattr(self._model, "get_image_features", self._model)
            output = image_features(pixel_values=inputs["pixel_values"])
        pooled = output if isinstance(output, torch.Tensor) else output.pooler_output
        return pooled.double().numpy()
