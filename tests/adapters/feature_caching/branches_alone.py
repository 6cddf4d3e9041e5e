"""The probe for mixed guidance branches: a branch must be answered as if the other had never been there.

For caches that keep one state for all calls: each branch's part of recorded calls is replayed alone on a twin with
diffusers' own cache. What the other branch left behind shows as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Calls = Sequence[tuple[dict[str, Any], torch.Tensor]]


def rows(calls: Calls, half: int) -> Calls:
    """One guidance branch of calls that have both in one batch: uncond is half 0, cond is half 1."""

    def cut(value: Any, size: int) -> Any:
        is_batched = isinstance(value, torch.Tensor) and value.shape[:1] == (size,)
        return value.chunk(2)[half] if is_batched else value

    return [({k: cut(v, len(o)) for k, v in kwargs.items()}, o.chunk(2)[half]) for kwargs, o in calls]


@torch.no_grad()
def largest_change(calls: Calls, twin: Callable[..., Any]) -> float:
    """Largest relative change of an output when these calls alone are made, in order, to a fresh cached twin.

    A batch of another size is added up in another order, so what is not mixed is not 0 but under 1e-5.
    """
    changes = []
    for kwargs, output in calls:
        alone = twin(**kwargs)[0]
        changes.append(float((alone - output).abs().mean() / output.abs().mean()))
    return max(changes)
