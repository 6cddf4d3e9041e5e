"""What a blend must equal, made without the router: sampling loops by hand, and denoisers swapped between steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from torch import nn

from tests.exactness.pipelines import Family


def swapped(
    family: Family, pipe: Any, denoisers: Mapping[str, nn.Module], letters: str, first: int = 0, **call: Any
) -> torch.Tensor:
    """A plain generation in which a callback puts the denoiser of the next step into the pipeline's slot.

    Args:
        letters: one denoiser letter for each timestep in the scheduler's full list.
        first: index in that list of the first step of this generation.
    """

    def put_next(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if first + step + 1 < len(letters):
            setattr(pipe, family.slot, denoisers[letters[first + step + 1]])
        return tensors

    setattr(pipe, family.slot, denoisers[letters[first]])
    return family.run(pipe, callback_on_step_end=put_next, **call)


@torch.no_grad()
def wan_by_hand(
    scheduler: Any,
    answering: Callable[[int, str], nn.Module],
    embeddings: Mapping[str, torch.Tensor],
    num_inference_steps: int,
    guidance_scale: float = 5.0,
    seed: int = 0,
) -> torch.Tensor:
    """The sampling loop of Wan: latents of 9 frames of 32x32 pixels.

    Args:
        answering: the denoiser for a step index and a guidance branch.
        embeddings: ``prompt_embeds`` and ``negative_prompt_embeds``.
    """
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    scheduler.set_timesteps(num_inference_steps)
    for index, t in enumerate(scheduler.timesteps):
        outputs = {}
        for branch, name in (("cond", "prompt_embeds"), ("uncond", "negative_prompt_embeds")):
            if branch == "cond" or guidance_scale > 1.0:
                outputs[branch] = answering(index, branch)(
                    hidden_states=latents, timestep=t.expand(1), encoder_hidden_states=embeddings[name]
                ).sample
        velocity = outputs["cond"]
        if guidance_scale > 1.0:
            velocity = outputs["uncond"] + guidance_scale * (outputs["cond"] - outputs["uncond"])
        latents = scheduler.step(velocity, t, latents).prev_sample
    return latents.flatten()


@torch.no_grad()
def ltx_by_hand(
    pipe: Any,
    answering: Callable[[int], nn.Module],
    arguments: Mapping[str, Any],
    num_inference_steps: int,
    guidance_scale: float = 3.0,
    seed: int = 0,
) -> torch.Tensor:
    """The sampling loop of LTX: both guidance branches in one batch, sigmas shifted by the number of tokens.

    Args:
        pipe: read for its scheduler, its compression ratios and its noise.
        answering: the denoiser for a step index.
        arguments: of the pipeline call for a batch of one: text, masks and size.
    """
    frames = (arguments["num_frames"] - 1) // pipe.vae_temporal_compression_ratio + 1
    height = arguments["height"] // pipe.vae_spatial_compression_ratio
    width = arguments["width"] // pipe.vae_spatial_compression_ratio
    size = (arguments["height"], arguments["width"], arguments["num_frames"])
    generator = torch.Generator().manual_seed(seed)
    latents = pipe.prepare_latents(1, 8, *size, torch.float32, torch.device("cpu"), generator)
    embeds = torch.cat([arguments["negative_prompt_embeds"], arguments["prompt_embeds"]])
    mask = torch.cat([arguments["negative_prompt_attention_mask"], arguments["prompt_attention_mask"]])
    config = pipe.scheduler.config
    mu = calculate_shift(
        frames * height * width,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    pipe.scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    for index, t in enumerate(pipe.scheduler.timesteps):
        velocity = answering(index)(
            hidden_states=torch.cat([latents, latents]),
            encoder_hidden_states=embeds,
            timestep=t.expand(2),
            encoder_attention_mask=mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(
                pipe.vae_temporal_compression_ratio / 25,
                pipe.vae_spatial_compression_ratio,
                pipe.vae_spatial_compression_ratio,
            ),
        ).sample
        uncond, cond = velocity.chunk(2)
        velocity = uncond + guidance_scale * (cond - uncond)
        latents = pipe.scheduler.step(velocity, t, latents).prev_sample
    return latents.flatten()
