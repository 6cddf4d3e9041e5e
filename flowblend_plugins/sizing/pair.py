"""Components of a published pair for one size of the video: bytes of weights, peak of a call, FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..errors import UsageError
from ..pairs.configs import denoiser_config, diffusers_class
from ..pairs.preset import PairPreset, PublishedDenoiser
from ..schedule import StageSchedule
from ..trace.flops import FlopCounter, ForwardFlops
from ..trace.memory import ModuleMemory, denoiser_memory, module_memory
from ..types import Denoiser
from .calls import VideoSize, call_inputs, family_of

DTYPE = torch.bfloat16


class SizedPair(NamedTuple):
    """A pair at one size of the video.

    Attributes:
        denoisers: memory by letter.
        flops: of one denoiser call by letter, all guidance branches that are in one call included.
        around: memory of the other components by name: of the text encoder encoding one prompt, of the VAE decoding.
        calls_per_step: denoiser calls that a step makes.
    """

    denoisers: Mapping[str, ModuleMemory]
    flops: Mapping[str, ForwardFlops]
    around: Mapping[str, ModuleMemory]
    calls_per_step: int

    def share_of_large(self, schedule: StageSchedule, num_steps: int) -> float:
        """FLOPs of a schedule (full count) as a fraction of the large denoiser's alone."""
        assigned = [letter for letter, _ in schedule.assignments(num_steps)]
        return sum(self.flops[letter].total for letter in assigned) / (num_steps * self.flops["L"].total)


def size_pair(preset: PairPreset, size: VideoSize, has_guidance: bool) -> SizedPair:
    """Size a published pair, in seconds and without weights.

    Args:
        preset: the pair.
        size: of the video.
        has_guidance: whether both guidance branches are asked for.

    Raises:
        UsageError: the pair has no published configs, its family is not known here, or the size does not fit it.
    """
    if not preset.published:
        raise UsageError(
            f"--pair {preset.name} has no published configs to compute with. Run it: it is small, or yours."
        )
    family = family_of(preset.published["L"].class_name)
    memory: dict[str, ModuleMemory] = {}
    flops: dict[str, ForwardFlops] = {}
    for letter, denoiser in preset.published.items():
        denoiser_class = diffusers_class(denoiser.class_name)
        assert denoiser_class is not None
        config = denoiser_config(denoiser_class, denoiser.config)
        inputs = call_inputs(denoiser.class_name, config, size, has_guidance)
        memory[letter] = denoiser_memory(denoiser_class, denoiser.config, inputs, DTYPE)
        flops[letter] = FlopCounter(denoiser_class, denoiser.config).count(inputs)
    latents = family.latents(size)
    around = {
        name: _vae_memory(one, latents) if name == "vae" else _text_memory(one) for name, one in preset.around.items()
    }
    return SizedPair(memory, flops, around, 2 if has_guidance and not family.is_batched else 1)


def _vae_memory(vae: PublishedDenoiser, latents: tuple[int, int, int]) -> ModuleMemory:
    def prepare(module: Denoiser) -> Callable[[], object]:
        channels = module.config.get("z_dim") or module.config["latent_channels"]
        latent = torch.empty(1, channels, *latents, dtype=DTYPE)
        timestep = (torch.empty(1, dtype=DTYPE),) if module.config.get("timestep_conditioning") else ()
        return lambda: module.decode(latent, *timestep, return_dict=False)

    vae_class: Any = diffusers_class(vae.class_name)
    return module_memory(lambda: vae_class.from_config(vae.config), prepare, DTYPE)


def _text_memory(encoder: PublishedDenoiser) -> ModuleMemory:
    import transformers

    encoder_class = getattr(transformers, encoder.class_name)

    def prepare(module: Denoiser) -> Callable[[], object]:
        tokens, mask = torch.zeros(1, 512, dtype=torch.int64), torch.ones(1, 512, dtype=torch.int64)
        return lambda: module(tokens, attention_mask=mask)

    return module_memory(lambda: encoder_class(encoder_class.config_class(**encoder.config)), prepare, DTYPE)
