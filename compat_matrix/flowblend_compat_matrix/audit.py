"""Of a stack that is declared incompatible and ran well all the same: did all of it run?"""

from __future__ import annotations

import torch

from .bench import Bench
from .cells import CellSpec


def without_effect(bench: Bench, spec: CellSpec, latents: torch.Tensor) -> list[str]:
    """The adapters of a stack that changed nothing in it, each with how that is known; as where two set the sampler.

    Args:
        bench: runs the cell without each of them.
        spec: the cell.
        latents: what it gave.
    """
    idle = []
    for left_out in spec.stack if len(spec.stack) > 1 else ():
        rest = CellSpec(spec.schedule, tuple(adapter for adapter in spec.stack if adapter != left_out))
        with bench.enabled(rest):
            found = bench.time_latents(rest, f"{spec.id}: without {left_out}").latents
        if torch.equal(found, latents):
            idle.append(f"{left_out} changed nothing: without it the latents are the same, bit for bit.")
    return idle
