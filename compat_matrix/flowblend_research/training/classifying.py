"""Loss and batches that the attribute classifier of a video pair is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from flowblend_compat_matrix.reference.classifier import FIELD_SIZES, AttributeClassifier
from flowblend_compat_matrix.reference.world import BACKGROUNDS, FIELDS, SHAPES, WORLD, Scene, World

from .stage import LossFunction, move
from .trainer import Job


def classifying(
    job: Job, classifier: AttributeClassifier, codec: Any, world: World, max_blur: float = 1.0
) -> LossFunction:
    """The loss on fresh videos, a part of them as the codec gives them back, as generated ones will be."""
    move(classifier, job.device)
    move(codec, job.device)

    def at_step(step: int) -> torch.Tensor:
        videos, labels = classifier_batch((5, step), 24, world, max_blur)
        videos, labels = videos.to(job.device), {name: label.to(job.device) for name, label in labels.items()}
        if step % 4 == 3:
            with torch.no_grad(), torch.autocast(job.device.type, torch.bfloat16):
                latents = codec.encode(videos[:8] * 2.0 - 1.0, return_dict=False)[0].mode()
                decoded = codec.decode(latents, return_dict=False)[0]
            videos[:8] = decoded.float() * 0.5 + 0.5
        return classifier_loss(classifier, videos, labels)

    return at_step


def scene_labels(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """Targets: ``present`` [B, 5] in 0/1, fields [B, 5] with -100 where the shape is absent, ``kind`` [B]."""
    labels = {name: np.full((len(scenes), len(SHAPES)), -100, dtype=np.int64) for name in FIELD_SIZES}
    present = np.zeros((len(scenes), len(SHAPES)), dtype=np.float32)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            shape = SHAPES.index(item.shape)
            present[row, shape] = 1.0
            for name in FIELD_SIZES:
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
    for name in FIELD_SIZES:
        logits = output[name].float().flatten(0, 1)
        loss = loss + functional.cross_entropy(logits, labels[name].flatten(), ignore_index=-100)
    return loss
