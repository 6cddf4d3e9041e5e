"""Decisions that depend on content, the same on every rank of a denoiser that is computed by several.

Under context parallelism (``enable_parallelism``) each rank sees its part of the tokens. A cache that compares them may
reuse on one rank and compute on another, which then waits for ever. Here the means that it compares are taken over all
ranks, so that it decides as on a single one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .diffusers.own_hooks import hooks_named
from .uncompiled import uncompiled

if TYPE_CHECKING:
    import torch

    from flowblend_plugins.types import Denoiser, Foreign


_DECISION = "_should_compute_remaining_blocks"


def is_parallel(denoiser: Denoiser) -> bool:
    """Whether several ranks compute this denoiser's tokens; it may have become so after ``enable()``."""
    config = getattr(denoiser, "_parallel_config", None)
    return getattr(config, "context_parallel_config", None) is not None


def splitting_obstacles(denoiser: Denoiser) -> Iterator[tuple[str, str]]:
    """Obstacle to a cache that stands outside the hooks that split tokens, as (what was found, what to do)."""
    if is_parallel(denoiser):
        yield (
            "its tokens are split between ranks (enable_parallelism), and this cache would decide on each rank for "
            "itself, so that one waits for the other for ever",
            "Use 'first_block_cache', which decides on all ranks together, or leave it out.",
        )


def relative_change(new: torch.Tensor, old: torch.Tensor, denoiser: Denoiser | None = None) -> float:
    """mean|new - old| / mean|old|, in float32; nan or inf where ``old`` is zero.

    Args:
        new, old: tensors of one shape; of a parallel denoiser, this rank's part of them, equally large on all.
        denoiser: whose tensors they are; ``None`` for tensors that are whole.
    """
    import torch

    new, old = new.float(), old.float()
    means = torch.stack([(new - old).abs().mean(), old.abs().mean()])
    if denoiser is not None and is_parallel(denoiser):
        import torch.distributed

        mesh = denoiser._parallel_config.context_parallel_config._flattened_mesh
        torch.distributed.all_reduce(means, group=mesh.get_group())
    return (means[0] / means[1]).item()


@contextlib.contextmanager
def first_blocks_agree(denoiser: Denoiser) -> Iterator[None]:
    """While entered, diffusers' FirstBlockCache on this denoiser decides the same on every rank."""
    leaders = hooks_named(denoiser, "fbc_leader_block_hook")
    for leader in leaders:
        leader._should_compute_remaining_blocks = functools.partial(_should_compute, denoiser, leader)
    try:
        yield
    finally:
        for leader in leaders:
            del leader._should_compute_remaining_blocks


def _should_compute(denoiser: Denoiser, leader: Foreign, residual: torch.Tensor) -> bool:
    if not is_parallel(denoiser):
        own: Callable[[Foreign, torch.Tensor], bool] = getattr(type(leader), _DECISION)
        return own(leader, residual)
    return uncompiled(_should_compute_together)(denoiser, leader, residual)


def _should_compute_together(denoiser: Denoiser, leader: Foreign, residual: torch.Tensor) -> bool:
    before = leader.state_manager.get_state().head_block_residual
    return before is None or relative_change(residual, before, denoiser) > leader.threshold
