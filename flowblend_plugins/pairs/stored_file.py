"""A denoiser in one file: LTX-Video as its authors publish it, loaded without network and in one copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..errors import PairError
from ..types import JsonView, Keywords, KeywordsView
from .configs import denoiser_config, diffusers_class
from .facts import Config
from .single_file import SingleFile

# Number of attention heads by width: the one thing that the shapes of the tensors do not tell. 2B and 13B of LTX-Video
# 0.9.0 to 0.9.8 (configs of Lightricks' repositories on the hub; everything else is the class's default).
_LTX_HEADS = {2048: 32, 4096: 32}


@dataclass(frozen=True)
class StoredFile:
    """A denoiser that was found in a single file but not loaded yet.

    Attributes:
        source: what the user wrote.
        file: the opened file.
        denoiser_class: its diffusers class.
        config: of the denoiser, for that class.
    """

    source: str
    file: SingleFile
    denoiser_class: Any
    config: JsonView

    @cached_property
    def configs(self) -> Mapping[str, Config]:
        """Its description, component name to config; of the VAE in the file, the statistics of the latents."""
        statistics = self.file.latent_statistics()
        described = {"denoiser": denoiser_config(self.denoiser_class, self.config)}
        return described | ({"vae": statistics} if statistics else {})

    def load(self, dtype: torch.dtype | None, further: KeywordsView = MappingProxyType({})) -> nn.Module:
        """The denoiser on the CPU in ``dtype``, in evaluation mode; it takes no ``further`` options.

        Raises:
            PairError: there are options, or tensors are missing, left over, of another size, quantised or not finite.
        """
        if further:
            raise PairError(
                f"small_options has {', '.join(sorted(further))}, but {self.source!r} is a single file, which is "
                "loaded as it is. Load it with from_single_file() yourself, or pass a folder or hub id."
            )
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            denoiser = self.denoiser_class.from_config(dict(self.config))
        own = {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}
        stored = self.file.shapes(self.denoiser_class, set(own))
        if stored is not None:
            self._refuse_misfit(own, stored)
        keep = tuple(getattr(self.denoiser_class, "_keep_in_fp32_modules", None) or ())
        wanted = dtype or torch.float32

        def dtype_of(name: str) -> torch.dtype:
            return torch.float32 if any(module in name.split(".") for module in keep) else wanted

        tensors = self.file.read(self.denoiser_class, set(own), dtype_of)
        self._refuse_misfit(own, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        denoiser.load_state_dict(tensors, assign=True)
        denoiser.register_to_config(_name_or_path=self.source)
        return denoiser.requires_grad_(False).eval()

    def _refuse_misfit(self, own: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> None:
        kind = self.denoiser_class.__name__
        for name, shape in own.items():
            if name not in stored:
                raise PairError(f"{self.source!r} lacks {name!r} of a {kind}. Download it again.")
            if stored[name] != shape:
                raise PairError(
                    f"{self.source!r} has {name!r} as {list(stored[name])}, and a {kind} of its width and depth has "
                    f"{list(shape)}. Use a file of the published layout."
                )
        left_over = sorted(stored.keys() - own.keys())
        if left_over:
            raise PairError(
                f"{self.source!r} has {len(left_over)} tensors that a {kind} of diffusers has no place for, "
                f"{left_over[0]!r} first, so it would not compute what it was made for. Use a checkpoint of the plain "
                "architecture."
            )


def stored_file(source: str | Path, path: Path) -> StoredFile:
    """Tell which denoiser a single file holds; no weights are read but the statistics of the latents.

    Raises:
        PairError: it is none of a layout that is known here.
    """
    file = SingleFile(str(source), path)
    kind = diffusers_class("LTXVideoTransformer3DModel")
    if file.shape("adaln_single.linear.weight") is None or file.shape("patchify_proj.weight") is None:
        raise PairError(
            f"{str(source)!r} is a single file of no layout that is known here (LTX-Video's 2B and 13B are). Load it "
            "with the denoiser class's from_single_file() and pass the object, or save_pretrained(folder) it once."
        )
    return StoredFile(str(source), file, kind, _ltx_config(file))


def _ltx_config(file: SingleFile) -> Keywords:
    """Config of an LTX-Video transformer, from the shapes of its tensors and what the file says of itself."""
    patchify, text = file.shape("patchify_proj.weight"), file.shape("caption_projection.linear_1.weight")
    inner, out = file.shape("attn2.to_k.weight"), file.shape("proj_out.weight")
    if not (patchify and text and inner and out and len(patchify) == 2):
        raise PairError(f"{file.source!r} is an incomplete LTX-Video transformer. Download it again.")
    width, channels = patchify
    heads = file.transformer_config().get("num_attention_heads", _LTX_HEADS.get(width))
    if not isinstance(heads, int) or heads < 1 or width % heads:
        known = ", ".join(map(str, _LTX_HEADS))
        raise PairError(
            f"{file.source!r} is an LTX-Video transformer of width {width}, and does not say its number of attention "
            f"heads (known for {known}). Load it with from_single_file(config=...) and pass the object."
        )
    blocks = {name.rpartition("transformer_blocks.")[2].split(".")[0] for name in file.names if "_blocks." in name}
    return {
        "in_channels": channels,
        "out_channels": out[0],
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "cross_attention_dim": inner[1],
        "num_layers": len(blocks),
        "caption_channels": text[1],
    }
