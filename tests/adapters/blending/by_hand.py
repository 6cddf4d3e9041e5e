"""Blending by hand: a plain pipeline whose denoiser's ``forward`` is replaced by the formulas of docs/blending.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flowblend_plugins.testing import generate

BRANCHES = ("cond", "uncond")


@dataclass
class ByHand:
    """What the replaced ``forward`` knows: both denoisers, and what the large one said last, for each branch."""

    pipe: Any
    small: nn.Module
    letters: str
    answer: Callable[[ByHand, int, str, dict[str, Any]], torch.Tensor]
    kept: dict[str, list[tuple[int, dict[str, Any], torch.Tensor]]] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)

    def level(self, index: int) -> float:
        return float(self.pipe.scheduler.sigmas[index])

    def generate(self, **call: Any) -> torch.Tensor:
        large = self.pipe.transformer.forward
        num_calls = 0

        def forward(**kwargs: Any) -> tuple[torch.Tensor]:
            nonlocal num_calls
            index, number = divmod(num_calls, 2)
            num_calls += 1
            branch = BRANCHES[number]
            if self.letters[index] == "L":
                velocity = large(**kwargs)[0]
                self.kept.setdefault(branch, []).append((index, kwargs, velocity))
                return (velocity,)
            return (self.answer(self, index, branch, kwargs),)

        self.large = large
        self.pipe.transformer.forward = forward
        try:
            return generate(self.pipe, **call)
        finally:
            del self.pipe.transformer.forward

    def residual(self, branch: str, at: int = -1) -> tuple[int, torch.Tensor]:
        """Step, and large minus small there."""
        index, kwargs, velocity = self.kept[branch][at]
        return index, velocity - self.small(**kwargs)[0]


def corrected(strength: float, damping: float, extrapolate: float = 0.0) -> Any:
    def answer(hand: ByHand, index: int, branch: str, kwargs: dict[str, Any]) -> torch.Tensor:
        last, residual = hand.residual(branch)
        level, last_level = hand.level(index), hand.level(last)
        if extrapolate:
            before, earlier = hand.residual(branch, -2)
            passed = (level - last_level) / (last_level - hand.level(before))
            residual = residual + extrapolate * passed * (residual - earlier)
        return hand.small(**kwargs)[0] + strength * (level / last_level) ** damping * residual

    return answer


def refreshed(threshold: float) -> Any:
    def answer(hand: ByHand, index: int, branch: str, kwargs: dict[str, Any]) -> torch.Tensor:
        last, inputs, _ = hand.kept[branch][-1]
        small, then = hand.small(**kwargs)[0], hand.small(**inputs)[0]
        if branch == "cond":
            hand.memory[index] = float((small - then).norm() / then.norm()) > threshold
        if hand.memory[index]:
            velocity = hand.large(**kwargs)[0]
            hand.kept[branch].append((index, kwargs, velocity))
            return velocity
        _, residual = hand.residual(branch)
        return small + hand.level(index) / hand.level(last) * residual

    return answer


def forecast(recall_every: int, trend: float) -> Any:
    def answer(hand: ByHand, index: int, branch: str, kwargs: dict[str, Any]) -> torch.Tensor:
        last, _, velocity = hand.kept[branch][-1]
        if index - last == recall_every:
            answered = hand.large(**kwargs)[0]
            hand.kept[branch].append((index, kwargs, answered))
            return answered
        before, _, earlier = hand.kept[branch][-2]
        passed = (hand.level(index) - hand.level(last)) / (hand.level(last) - hand.level(before))
        weight = trend * (1.0 - hand.level(index) / hand.level(0)) ** 2
        return velocity + weight * passed * (velocity - earlier)

    return answer
