"""A judge that looks at videos: which shapes are there, how they look and move, and over which background.

It gives prompt alignment (the share of captioned attributes that are right) and features for a Frechet distance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from .world import BACKGROUNDS, FIELDS, SHAPES, WORLD, Attribute, Scene, World

FEATURE_DIM = 48
_WIDTH = 96
_FIELD_SIZES = {name: len(values) for name, values in FIELDS.items() if name != "shape"}


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
            nn.Sequential(nn.Linear(2 * width, 128), nn.SiLU(), nn.Linear(128, 1 + sum(_FIELD_SIZES.values())))
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
        present, *fields = logits.split([1, *_FIELD_SIZES.values()], dim=-1)
        output = {"present": present[..., 0], "features": features, "kind": self.background(features)}
        output["present_pooled"] = self.present(features)
        return output | dict(zip(_FIELD_SIZES, fields, strict=True))

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


def scene_labels(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """Targets: ``present`` [B, 5] in 0/1, fields [B, 5] with -100 where the shape is absent, ``kind`` [B]."""
    labels = {name: np.full((len(scenes), len(SHAPES)), -100, dtype=np.int64) for name in _FIELD_SIZES}
    present = np.zeros((len(scenes), len(SHAPES)), dtype=np.float32)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            shape = SHAPES.index(item.shape)
            present[row, shape] = 1.0
            for name in _FIELD_SIZES:
                labels[name][row, shape] = FIELDS[name].index(getattr(item, name))
    kinds = torch.tensor([BACKGROUNDS.index(scene.background.kind) for scene in scenes])
    return {name: torch.from_numpy(value) for name, value in labels.items()} | {
        "present": torch.from_numpy(present),
        "kind": kinds,
    }


def _augment(videos: torch.Tensor, generator: torch.Generator, max_blur: float) -> torch.Tensor:
    """Blur, as a codec would, a little noise and a little brightness; ``[B, 3, F, H, W]`` in 0..1."""
    size = videos.shape[0]
    smaller = functional.avg_pool3d(videos, (1, 2, 2))
    blurred = functional.interpolate(smaller, size=videos.shape[2:], mode="trilinear", align_corners=False)
    amount = (torch.rand(size, 1, 1, 1, 1, generator=generator) * 1.6 - 0.6).clamp(0, 1).mul(max_blur).to(videos.device)
    gain = 1.0 + 0.1 * (torch.rand(size, 1, 1, 1, 1, generator=generator) - 0.5).to(videos.device)
    noise = 0.03 * torch.rand(size, 1, 1, 1, 1, generator=generator).to(videos.device)
    return (torch.lerp(videos, blurred, amount) * gain + noise * torch.randn_like(videos)).clamp(0.0, 1.0)


def classifier_batch(
    seed: tuple[int, ...], size: int, world: World = WORLD, max_blur: float = 1.0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Augmented world videos ``[B, 3, F, H, W]`` in 0..1 and their labels; ``max_blur`` 1 halves the resolution."""
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng) for _ in range(size)]
    videos = torch.from_numpy(np.stack([world.render(scene) for scene in scenes])).permute(0, 4, 1, 2, 3)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return _augment(videos.contiguous(), generator, max_blur), scene_labels(scenes)


def classifier_loss(
    classifier: AttributeClassifier, videos: torch.Tensor, labels: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Cross-entropy of everything that is labelled."""
    # Float32 on CPUs: with AVX512-BF16 a gradient of the first convolution is now and then not a number.
    with torch.autocast(videos.device.type, torch.bfloat16, enabled=videos.device.type != "cpu"):
        output = classifier(videos)
    loss = functional.cross_entropy(output["kind"].float(), labels["kind"])
    for name in ("present", "present_pooled"):
        loss = loss + 3.0 * functional.binary_cross_entropy_with_logits(output[name].float(), labels["present"])
    for name in _FIELD_SIZES:
        logits = output[name].float().flatten(0, 1)
        loss = loss + functional.cross_entropy(logits, labels[name].flatten(), ignore_index=-100)
    return loss
