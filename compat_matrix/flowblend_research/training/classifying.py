"""The loss that the attribute classifier of a video pair is trained by."""

from __future__ import annotations

from typing import Any

import torch

from flowblend_compat_matrix.reference.classifier import AttributeClassifier, classifier_batch, classifier_loss
from flowblend_compat_matrix.reference.world import World

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
