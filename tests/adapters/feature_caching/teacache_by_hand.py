"""TeaCache as users have it: a ``forward`` and attributes set on the denoiser's class. Written from the formulas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput

IDENTITY = (0.0, 0.0, 0.0, 1.0, 0.0)
"""Coefficients with which the estimate is the signal's own relative change."""


def _distance(new: torch.Tensor, old: torch.Tensor, coefficients: Sequence[float]) -> float:
    change = ((new - old).abs().mean() / old.abs().mean()).cpu().item()
    return abs(float(np.poly1d(coefficients)(change)))


def wan_forward(
    self: Any,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_hidden_states_image: torch.Tensor | None = None,
    return_dict: bool = True,
    attention_kwargs: dict[str, Any] | None = None,
) -> Any:
    """Calls alternate between the guidance branches, and which is which is told by the call counter."""
    batch, _, frames, height, width = hidden_states.shape
    p_t, p_h, p_w = self.config.patch_size
    grid = (frames // p_t, height // p_h, width // p_w)
    rotary = self.rope(hidden_states)
    x = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
    e, e0, context, image = self.condition_embedder(timestep, encoder_hidden_states, encoder_hidden_states_image)
    e0 = e0.unflatten(1, (6, -1))
    if image is not None:
        context = torch.concat([image, context], dim=1)

    def blocks(x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, context, e0, rotary)
        return x

    if getattr(self, "enable_teacache", False):
        signal = e0 if self.use_ref_steps else e
        side = "even" if self.cnt % 2 == 0 else "odd"
        distance, previous = f"accumulated_rel_l1_distance_{side}", f"previous_e0_{side}"
        residual = f"previous_residual_{side}"
        compute = self.cnt < self.ret_steps or self.cnt >= self.cutoff_steps
        if not compute:
            grown = getattr(self, distance) + _distance(signal, getattr(self, previous), self.coefficients)
            setattr(self, distance, grown)
            compute = grown >= self.teacache_thresh
        if compute:
            setattr(self, distance, 0)
        setattr(self, previous, signal.clone())
        if compute:
            before = x.clone()
            x = blocks(x)
            setattr(self, residual, x - before)
        else:
            x = x + getattr(self, residual)
        self.cnt += 1
        if self.cnt >= self.num_steps:
            self.cnt = 0
    else:
        x = blocks(x)
    shift, scale = (self.scale_shift_table + e.unsqueeze(1)).chunk(2, dim=1)
    x = (self.norm_out(x.float()) * (1 + scale) + shift).type_as(x)
    x = self.proj_out(x).reshape(batch, *grid, p_t, p_h, p_w, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    output = x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def ltx_forward(
    self: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    rope_interpolation_scale: Any = None,
    video_coords: torch.Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    return_dict: bool = True,
) -> Any:
    """Both guidance branches are one batch, so one state serves them."""
    rotary = self.rope(hidden_states, num_frames, height, width, rope_interpolation_scale, video_coords)
    mask = ((1 - encoder_attention_mask.to(hidden_states.dtype)) * -10000.0).unsqueeze(1)
    batch = hidden_states.size(0)
    x = self.proj_in(hidden_states)
    temb, embedded = self.time_embed(timestep.flatten(), batch_size=batch, hidden_dtype=x.dtype)
    temb, embedded = temb.view(batch, -1, temb.size(-1)), embedded.view(batch, -1, embedded.size(-1))
    context = self.caption_projection(encoder_hidden_states).view(batch, -1, x.size(-1))

    def blocks_and_norm(x: torch.Tensor) -> torch.Tensor:
        for block in self.transformer_blocks:
            x = block(
                hidden_states=x,
                encoder_hidden_states=context,
                temb=temb,
                image_rotary_emb=rotary,
                encoder_attention_mask=mask,
            )
        values = self.scale_shift_table[None, None] + embedded[:, :, None]
        shift, scale = values[:, :, 0], values[:, :, 1]
        return self.norm_out(x) * (1 + scale) + shift

    if getattr(self, "enable_teacache", False):
        first = self.transformer_blocks[0]
        rows = first.scale_shift_table.shape[0]
        ada = first.scale_shift_table[None, None] + temb.reshape(batch, temb.size(1), rows, -1)
        shift, scale = ada.unbind(dim=2)[:2]
        signal = first.norm1(x.clone()) * (1 + scale) + shift
        compute = self.cnt in (0, self.num_steps - 1)
        if not compute:
            self.accumulated_rel_l1_distance += _distance(signal, self.previous_modulated_input, self.coefficients)
            compute = self.accumulated_rel_l1_distance >= self.rel_l1_thresh
        if compute:
            self.accumulated_rel_l1_distance = 0
        self.previous_modulated_input = signal
        self.cnt += 1
        if self.cnt == self.num_steps:
            self.cnt = 0
        if compute:
            before = x.clone()
            x = blocks_and_norm(x)
            self.previous_residual = x - before
        else:
            x = x + self.previous_residual
    else:
        x = blocks_and_norm(x)
    output = self.proj_out(x)
    return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def wan_attributes(
    threshold: float, num_inference_steps: int, retention: bool, coefficients: Sequence[float] = IDENTITY
) -> dict[str, Any]:
    calls = 2 * num_inference_steps
    return {
        "enable_teacache": True,
        "cnt": 0,
        "num_steps": calls,
        "teacache_thresh": threshold,
        "accumulated_rel_l1_distance_even": 0,
        "accumulated_rel_l1_distance_odd": 0,
        "previous_e0_even": None,
        "previous_e0_odd": None,
        "previous_residual_even": None,
        "previous_residual_odd": None,
        "use_ref_steps": retention,
        "coefficients": list(coefficients),
        "ret_steps": 10 if retention else 2,
        "cutoff_steps": calls if retention else calls - 2,
    }


def ltx_attributes(
    threshold: float, num_inference_steps: int, coefficients: Sequence[float] = IDENTITY
) -> dict[str, Any]:
    return {
        "enable_teacache": True,
        "cnt": 0,
        "num_steps": num_inference_steps,
        "rel_l1_thresh": threshold,
        "accumulated_rel_l1_distance": 0,
        "previous_modulated_input": None,
        "previous_residual": None,
        "coefficients": list(coefficients),
    }


@contextmanager
def patched_class(cls: Any, forward: Any, attributes: dict[str, Any]) -> Iterator[None]:
    """A class as the scripts leave it; afterwards as diffusers has it."""
    original = cls.forward
    cls.forward = forward
    for name, value in attributes.items():
        setattr(cls, name, value)
    try:
        yield
    finally:
        cls.forward = original
        for name in attributes:
            delattr(cls, name)


def patch_instance(denoiser: Any, forward: Any, attributes: dict[str, Any]) -> None:
    denoiser.forward = forward.__get__(denoiser)
    for name, value in attributes.items():
        setattr(denoiser, name, value)


def patched(
    family: str, threshold: float, num_inference_steps: int, retention: bool = True
) -> tuple[Any, Any, dict[str, Any]]:
    """Class, forward and attributes of a set-up for ``"wan"`` or ``"ltx"``."""
    if family == "ltx":
        return LTXVideoTransformer3DModel, ltx_forward, ltx_attributes(threshold, num_inference_steps)
    return WanTransformer3DModel, wan_forward, wan_attributes(threshold, num_inference_steps, retention)
