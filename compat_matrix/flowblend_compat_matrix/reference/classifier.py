"""A judge that looks at videos: which shapes are there, how they look and move, and over which background.

It gives prompt alignment (the share of captioned attributes that are right) and features for a Frechet distance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from .world import BACKGROUNDS, FIELDS, SHAPES, Attribute

FEATURE_DIM = 48
_WIDTH = 96
FIELD_SIZES = {name: len(values) for name, values in FIELDS.items() if name != "shape"}


class AttributeClassifier(nn.Module):
    """A 3-D convolutional trunk, one attention-pooled reader per shape, and a pooled reader for the whole video."""

    def __init__(self, width: int = _WIDTH, stride: int = 2) -> None:
        super().__init__()
        self.config = {"width": width, "feature_dim": FEATURE_DIM, "stride": stride}
        w1, w2 = width // 4, width // 2

        def layer(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> nn.Module:
            padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
            conv = nn.Conv3d(inputs, outputs, kernel, stride, padding)
            return nn.Sequential(conv, nn.GroupNorm(8, outputs), nn.SiLU())

        self.trunk = nn.Sequential(
            layer(3, w1, (1, 5, 5), (1, stride, stride)),
            layer(w1, w2, (3, 3, 3), (2, 2, 2)),
            layer(w2, w2, (1, 3, 3), (1, 1, 1)),
            layer(w2, width, (3, 3, 3), (2, 2, 2)),
            layer(width, width, (3, 3, 3), (1, 1, 1)),
            layer(width, width, (1, 3, 3), (1, 1, 1)),
        )
        self.attention = nn.Conv3d(width, len(SHAPES), 1)
        self.readers = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, 128), nn.SiLU(), nn.Linear(128, 1 + sum(FIELD_SIZES.values())))
            for _ in SHAPES
        )
        self.summary = nn.Linear(2 * width, FEATURE_DIM)
        self.background = nn.Linear(FEATURE_DIM, len(BACKGROUNDS))
        self.present = nn.Linear(FEATURE_DIM, len(SHAPES))

    def forward(self, videos: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits from ``[B, 3, F, H, W]`` in 0..1: ``present`` [B, 5], ``colour``... [B, 5, values], ``kind``."""
        hidden = self.trunk(videos * 2.0 - 1.0)
        flat = hidden.flatten(2)
        weights = self.attention(hidden).flatten(2).softmax(dim=-1)
        mean = flat.mean(dim=-1)
        pooled = torch.einsum("bsn,bcn->bsc", weights, flat)
        logits = torch.stack(
            [reader(torch.cat([pooled[:, i], mean], dim=-1)) for i, reader in enumerate(self.readers)], dim=1
        )
        features = torch.tanh(self.summary(torch.cat([mean, flat.amax(dim=-1)], dim=-1)))
        present, *fields = logits.split([1, *FIELD_SIZES.values()], dim=-1)
        output = {"present": present[..., 0], "features": features, "kind": self.background(features)}
        output["present_pooled"] = self.present(features)
        return output | dict(zip(FIELD_SIZES, fields, strict=True))

    @torch.no_grad()
    def predict(self, videos: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """Output of `forward` from one video ``[F, H, W, 3]`` or several, in batches."""
        if videos.ndim == 4:
            videos = videos[None]
        if videos.ndim != 5 or videos.shape[-1] != 3:
            raise ValueError(f"videos must be [N, F, H, W, 3] in 0..1; found shape {videos.shape}")
        device = next(self.parameters()).device
        parts = [
            self(torch.from_numpy(np.ascontiguousarray(part)).float().to(device).permute(0, 4, 1, 2, 3))
            for part in np.array_split(videos, max(1, len(videos) // 32))
        ]
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    def features(self, videos: NDArray[np.float32]) -> NDArray[np.float64]:
        """Features ``[N, 48]`` of videos ``[N, F, H, W, 3]`` in 0..1, for `metrics.frechet_distance`."""
        return self.predict(videos)["features"].double().numpy()

    def judge(self, videos: NDArray[np.float32], attributes: Sequence[Sequence[Attribute]]) -> list[list[bool]]:
        """Say of each attribute that a video's caption names whether it is right.

        What is said of a shape that is not there is wrong.
        """
        predicted = self.predict(videos)
        if len(attributes) != len(predicted["kind"]):
            raise ValueError(f"{len(predicted['kind'])} videos but attributes of {len(attributes)} captions")
        verdicts: list[list[bool]] = []
        for row, named in enumerate(attributes):
            verdict = []
            for item in named:
                if item.subject == "background":
                    verdict.append(BACKGROUNDS[int(predicted["kind"][row].argmax())] == item.value)
                    continue
                shape = SHAPES.index(item.subject)
                right = bool(predicted["present"][row, shape] > 0)
                if item.name != "present":
                    value = FIELDS[item.name][int(predicted[item.name][row, shape].argmax())]
                    right = right and value == item.value
                verdict.append(right)
            verdicts.append(verdict)
        return verdicts

    def alignment(self, videos: NDArray[np.float32], attributes: Sequence[Sequence[Attribute]]) -> float:
        """Prompt alignment: the share of captioned attributes that are right, in 0..1."""
        verdicts = [right for verdict in self.judge(videos, attributes) for right in verdict]
        return float(np.mean(verdicts))

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` (float16)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        save_file(
            {name: value.half().contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors"
        )

    @classmethod
    def load(cls, folder: Path) -> AttributeClassifier:
        """Read what `save` wrote; float32, on the CPU, ready to judge."""
        config = json.loads((folder / "config.json").read_text())
        classifier = cls(width=config["width"], stride=config.get("stride", 2))
        classifier.load_state_dict({n: t.float() for n, t in load_file(folder / "model.safetensors").items()})
        return classifier.eval()
