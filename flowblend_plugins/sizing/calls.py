"""Inputs with which a pipeline calls a denoiser of a known family, as shapes, for a size of the video."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..errors import UsageError
from ..trace.flops import CallInputs, TensorInput
from ..types import JsonView, Keywords


class VideoSize(NamedTuple):
    """Size of a video: pixels and frames."""

    height: int
    width: int
    num_frames: int


class LatentSize(NamedTuple):
    """Size of a video's latents."""

    num_frames: int
    height: int
    width: int


class CallFamily(NamedTuple):
    """Calls of one family of denoisers, as its pipelines make them.

    Attributes:
        spatial, temporal: compression of the VAE.
        multiple: of which height and width must be multiples.
        is_batched: both guidance branches are one call.
        inputs: keyword arguments of one call, given the denoiser's full config, the latents' size and the batch size.
    """

    spatial: int
    temporal: int
    multiple: int
    is_batched: bool
    inputs: Callable[[JsonView, LatentSize, int], Keywords]

    def latents(self, size: VideoSize) -> LatentSize:
        """Size of the latents of a video.

        Raises:
            UsageError: the pipeline would round the size.
        """
        if size.height % self.multiple or size.width % self.multiple or (size.num_frames - 1) % self.temporal:
            raise UsageError(
                f"a video of {size.width}x{size.height}x{size.num_frames}: height and width must be multiples of "
                f"{self.multiple}, and the frames one more than a multiple of {self.temporal}."
            )
        return LatentSize(
            (size.num_frames - 1) // self.temporal + 1, size.height // self.spatial, size.width // self.spatial
        )


def _floats(*shape: int) -> TensorInput:
    return TensorInput(torch.Size(shape), torch.float32)


def _wan(config: JsonView, size: LatentSize, batch: int) -> Keywords:
    inputs: Keywords = {
        "hidden_states": _floats(batch, config["in_channels"], *size),
        "timestep": TensorInput(torch.Size([batch]), torch.int64),
        "encoder_hidden_states": _floats(batch, 512, config["text_dim"]),
        "return_dict": False,
    }
    if config.get("image_dim") is not None:
        inputs["encoder_hidden_states_image"] = _floats(batch, 257, config["image_dim"])
    return inputs


def _vace(config: JsonView, size: LatentSize, batch: int) -> Keywords:
    return _wan(config, size, batch) | {
        "control_hidden_states": _floats(batch, config["vace_in_channels"], *size),
        "control_hidden_states_scale": _floats(len(config["vace_layers"])),
    }


def _ltx(config: JsonView, size: LatentSize, batch: int) -> Keywords:
    return {
        "hidden_states": _floats(batch, size.num_frames * size.height * size.width, config["in_channels"]),
        "timestep": _floats(batch),
        "encoder_hidden_states": _floats(batch, 256, config["caption_channels"]),
        "encoder_attention_mask": _floats(batch, 256),
        "num_frames": size.num_frames,
        "height": size.height,
        "width": size.width,
        "return_dict": False,
    }


_WAN = CallFamily(spatial=8, temporal=4, multiple=16, is_batched=False, inputs=_wan)
_FAMILIES = {
    "WanTransformer3DModel": _WAN,
    "SkyReelsV2Transformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN._replace(inputs=_vace),
    "LTXVideoTransformer3DModel": CallFamily(spatial=32, temporal=8, multiple=32, is_batched=True, inputs=_ltx),
}


def family_of(class_name: str) -> CallFamily:
    """The family of a denoiser's class.

    Raises:
        UsageError: it is not known how such a denoiser is called.
    """
    if class_name not in _FAMILIES:
        raise UsageError(
            f"the memory of a {class_name} is not computed: known are {', '.join(sorted(_FAMILIES))}. Load the "
            "pair and measure it with torch.cuda.max_memory_allocated()."
        )
    return _FAMILIES[class_name]


def call_inputs(class_name: str, config: JsonView, size: VideoSize, has_guidance: bool) -> CallInputs:
    """Inputs of one denoiser call.

    Args:
        class_name: the denoiser's in diffusers.
        config: all of its config, defaults included.
        size: of the video.
        has_guidance: both branches are asked for, in one call where the family's pipelines do so.

    Raises:
        UsageError: the family is not known, or the size does not fit it.
    """
    family = family_of(class_name)
    batch = 2 if family.is_batched and has_guidance else 1
    return CallInputs((), family.inputs(config, family.latents(size), batch))
