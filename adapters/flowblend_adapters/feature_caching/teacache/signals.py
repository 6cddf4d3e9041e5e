"""The signals that TeaCache watches, and where in each denoiser the residual that it reuses begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from flowblend_plugins import StackError
from flowblend_plugins.types import Denoiser, KeywordsView

from .published import MODULATED_INPUT, PROJECTED_TIME, TIME

Arguments = KeywordsView
"""Arguments of the first block by name: ``hidden_states`` (batch, tokens, width), ``temb``, and more."""


@dataclass(frozen=True)
class Layout:
    """Names of the modules and attributes that TeaCache needs of a denoiser.

    Attributes:
        blocks: attribute with its transformer blocks.
        tail: attribute of the layer whose input ends the residual; ``None`` where the last block's output does.
        block_arguments: names of what the first block is called with, in order.
        signals: by name, a function of the first block, its arguments and the time embedding seen in this call.
    """

    blocks: str
    tail: str | None
    block_arguments: tuple[str, ...]
    signals: Mapping[str, Callable[[nn.Module, Arguments, torch.Tensor | None], torch.Tensor]]


def _projected_time(block: nn.Module, arguments: Arguments, time: torch.Tensor | None) -> torch.Tensor:
    """Wan: the time embedding as the blocks are modulated with it, (batch, 6, width)."""
    return arguments["temb"]


def _time(block: nn.Module, arguments: Arguments, time: torch.Tensor | None) -> torch.Tensor:
    """Wan: the time embedding before its projection, (batch, width), in the precision it is computed in."""
    assert time is not None, "the time embedder runs before the blocks"
    return time


def _modulated_input(block: Denoiser, arguments: Arguments, time: torch.Tensor | None) -> torch.Tensor:
    """LTX: what the first block's self-attention sees, norm(x) (1 + scale) + shift, (batch, tokens, width)."""
    hidden_states, temb, table = arguments["hidden_states"], arguments["temb"], block.scale_shift_table
    if table.is_meta:
        raise StackError(
            "'teacache' reads weights of the first block of LTX, which sequential offloading keeps away. Use "
            "enable_model_cpu_offload() instead."
        )
    modulation = table[None, None].to(temb.device) + temb.reshape(len(temb), temb.shape[1], len(table), -1)
    shift, scale = modulation[:, :, 0], modulation[:, :, 1]
    return block.norm1(hidden_states) * (1 + scale) + shift


LAYOUTS: Mapping[str, Layout] = {
    "WanTransformer3DModel": Layout(
        blocks="blocks",
        tail=None,
        block_arguments=("hidden_states", "encoder_hidden_states", "temb", "rotary_emb"),
        signals={PROJECTED_TIME: _projected_time, TIME: _time},
    ),
    "LTXVideoTransformer3DModel": Layout(
        blocks="transformer_blocks",
        tail="proj_out",
        block_arguments=("hidden_states", "encoder_hidden_states", "temb"),
        signals={MODULATED_INPUT: _modulated_input},
    ),
}


def layout_of(denoiser: Denoiser) -> Layout:
    """Raises ``StackError`` for a denoiser of another class."""
    for cls in type(denoiser).__mro__:
        if cls.__name__ in LAYOUTS:
            return LAYOUTS[cls.__name__]
    raise StackError(
        f"'teacache' runs on {' or '.join(sorted(LAYOUTS))}, and this denoiser is a {type(denoiser).__name__}. "
        "Leave out 'teacache'."
    )


def relative_change(new: torch.Tensor, old: torch.Tensor) -> float:
    """mean|new - old| / mean|old|, in float32; nan or inf where ``old`` is zero."""
    new, old = new.float(), old.float()
    return ((new - old).abs().mean() / old.abs().mean()).item()


def time_signal(denoiser: Denoiser, signal: str, timestep: float) -> torch.Tensor:
    """A Wan signal at a timestep, as the denoiser will compute it: these two depend on nothing else."""
    embedder = denoiser.condition_embedder
    weight = embedder.time_embedder.linear_1.weight
    sinusoids = embedder.timesteps_proj(torch.tensor([timestep], device=weight.device))
    time = embedder.time_embedder(sinusoids.to(weight.dtype))
    return time if signal == TIME else embedder.time_proj(embedder.act_fn(time.to(denoiser.dtype)))
