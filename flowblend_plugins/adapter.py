"""The contract of an adapter: our integration of one acceleration technique (not a LoRA, not the `adapters` library)."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from .traits import AdapterTraits


@dataclass(frozen=True)
class AttachTarget:
    """What an adapter is attached to.

    Attributes:
        pipeline: the diffusers pipeline.
        denoisers: letter to denoiser, ``{"L": large, "S": small}`` and any further ones.
        reentry: ``"recompute"`` or ``"keep"``: what becomes of cached state when a denoiser returns.
    """

    pipeline: Any
    denoisers: Mapping[str, nn.Module]
    reentry: str = "recompute"


class Adapter(abc.ABC):
    """One technique, attached to one pipeline for as long as FlowBlending is enabled on it.

    A subclass is a frozen keyword-only dataclass of its options (validated in ``__post_init__``), plus ``name``,
    ``traits`` and the two methods. While attached, the instance is also a plugin of its blend: any ``flowblend_*`` hook
    it implements is called (``flowblend_stage_entered`` is how state hears that a denoiser returns).
    State goes into the object that ``attach`` returns to itself or into the denoisers' own hooks, never onto a class.
    """

    name: ClassVar[str]
    traits: ClassVar[AdapterTraits]

    @abc.abstractmethod
    def attach(self, target: AttachTarget) -> None:
        """Put the technique on. Raise ``StackError`` with the reason and the remedy where it cannot work."""

    @abc.abstractmethod
    def detach(self, target: AttachTarget) -> None:
        """Take it off again: the pipeline and the denoisers are then what they were, bit for bit."""
