"""Reading denoiser weights from one safetensors file, in the layout of its authors or of diffusers.

Names are translated by diffusers' own converters. fp8 weights are multiplied by the scales that stand beside them
(``.scale_weight`` of ComfyUI, ``.weight_scale``); what is left over, quantised otherwise or not finite is refused by
name. Tensors are read one at a time in the dtype that is wanted , so that memory holds the result
and one tensor more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import PairError
from ..types import Keywords, KeywordsView
from .sources import HUB_FILE

_SCALES = (".scale_weight", ".weight_scale")
# Of inputs that are quantised too, which these weights are not used with; and marks of the format.
_OF_NO_MEANING_HERE = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale)")
_OTHER_COMPONENTS = ("vae.", "first_stage_model.", "text_encoder", "text_encoders.", "cond_stage_model.")
_DOWNLOAD = "Download it again."


class SingleFile:
    """A safetensors file that holds a denoiser, opened but not read.

    Attributes:
        source: what the user wrote.
        path: of the file.
        names: of the denoiser's tensors in the file, without scales and marks.
        metadata: texts that the file keeps beside its tensors.
    """

    def __init__(self, source: str, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.source: str = source
        self.path: Path = path
        try:
            with safe_open(path, framework="pt") as file:
                stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                self._shapes: dict[str, tuple[int, ...]] = {n: tuple(part.get_shape()) for n, part in stored.items()}
                self.metadata: dict[str, str] = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise PairError(f"{source!r} cannot be read as safetensors: {error}. {_DOWNLOAD}") from error
        own = [name for name in self._shapes if not name.startswith(_OTHER_COMPONENTS)]
        self._scales = {self._scaled(name): name for name in own if name.endswith(_SCALES)}
        kept = set(self._scales.values())
        self.names: list[str] = [name for name in own if name not in kept and not _OF_NO_MEANING_HERE.fullmatch(name)]

    def shape(self, ending: str) -> tuple[int, ...] | None:
        """Shape of the one tensor whose name ends so; ``None`` where there is none."""
        return next((self._shapes[name] for name in self._shapes if name.endswith(ending)), None)

    def translated(self, denoiser_class: type, own_names: set[str]) -> dict[str, str] | None:
        """The name in the file for every name in a denoiser; ``None`` if diffusers' converter changes tensors too.

        Args:
            denoiser_class: of diffusers.
            own_names: of the denoiser's tensors, to tell a file that is in diffusers' layout already.
        """
        if 2 * len(own_names.intersection(self.names)) > len(self.names):
            return {name: name for name in self.names}
        try:
            found = _converter(self.source, denoiser_class)({name: name for name in self.names})
        except (AttributeError, TypeError, KeyError, ValueError, RuntimeError):  # it slices or joins tensors
            return None
        return dict(found) if sorted(map(str, found.values())) == sorted(self.names) else None

    def shapes(self, denoiser_class: type, own_names: set[str]) -> dict[str, tuple[int, ...]] | None:
        """Shapes by the names that a denoiser has for them, without reading; ``None`` if only reading will tell."""
        names = self.translated(denoiser_class, own_names)
        return None if names is None else {own: self._shapes[name] for own, name in names.items()}

    def read(
        self, denoiser_class: type, own_names: set[str], dtype_of: Callable[[str], torch.dtype]
    ) -> dict[str, torch.Tensor]:
        """All tensors, by the names that a denoiser has for them.

        Args:
            denoiser_class: of diffusers.
            own_names: of the denoiser's tensors.
            dtype_of: the dtype that is wanted of each of its tensors.

        Raises:
            PairError: a tensor is quantised in a way that is not known, or holds NaN or inf.
        """
        names = self.translated(denoiser_class, own_names)
        if names is not None:
            return {own: self._tensor(name, dtype_of(own)) for own, name in names.items()}
        converted = _converter(self.source, denoiser_class)({name: self._tensor(name, None) for name in self.names})
        return {own: tensor.to(dtype_of(own)) for own, tensor in converted.items()}

    def latent_statistics(self) -> dict[str, list[float]]:
        """Mean and deviation of the latents, where the file holds LTX-Video's VAE as well."""
        stored = {
            "latents_mean": "vae.per_channel_statistics.mean-of-means",
            "latents_std": "vae.per_channel_statistics.std-of-means",
        }
        return {own: self._tensor(name, torch.float32).tolist() for own, name in stored.items() if name in self._shapes}

    def transformer_config(self) -> Keywords:
        """Config of the transformer as the authors wrote it into the file; empty where they did not."""
        try:
            return dict(json.loads(self.metadata.get("config", "{}")).get("transformer", {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise PairError(f"the config inside {self.source!r} cannot be read: {error}. {_DOWNLOAD}") from error

    def _scaled(self, scale: str) -> str:
        """The weight that a scale belongs to."""
        ending = next(ending for ending in _SCALES if scale.endswith(ending))
        weight = f"{scale.removesuffix(ending)}.weight"
        if weight not in self._shapes:
            raise PairError(
                f"{self.source!r} has the scale {scale!r} and no weight for it, so it cannot be applied. Use the bf16 "
                "file."
            )
        return weight

    def _tensor(self, name: str, dtype: torch.dtype | None) -> torch.Tensor:
        from safetensors import safe_open

        # Opened anew for each tensor: the pages of an open file count as memory of the process.
        with safe_open(self.path, framework="pt") as file:
            stored = file.get_tensor(name)
            if not stored.is_floating_point():
                raise PairError(
                    f"{self.source!r} is quantised: {name!r} is {_short(stored.dtype)}, and only fp8 can be read, with "
                    "one scale for a weight or a row. Use the bf16 or fp8 file, or load it and pass the object."
                )
            if name in self._scales:
                scale = file.get_tensor(self._scales[name]).float()
                if scale.numel() not in (1, stored.shape[0]):
                    raise PairError(
                        f"{self.source!r} scales {name!r} in blocks ({list(scale.shape)} scales), which cannot be "
                        "applied here. Use the bf16 file, or one with a scale for each weight."
                    )
                stored = stored.float() * scale.reshape(-1, *[1] * (stored.ndim - 1))
            tensor = stored.to(dtype or (torch.bfloat16 if stored.itemsize == 1 else stored.dtype), copy=True)
        refuse_not_finite(self.source, name, tensor)
        return tensor


def refuse_not_finite(source: str, name: str, tensor: torch.Tensor) -> None:
    """Raise ``PairError`` if weights hold NaN or inf."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise PairError(
            f"{name!r} in {source!r} holds NaN or inf (read as {_short(tensor.dtype)}), which every video would show. "
            f"{_DOWNLOAD}"
        )


def find_single_file(source: str | Path) -> Path | None:
    """The local path of a weights file: of a file here, or of ``"org/name/file.safetensors"`` on the hub.

    Returns:
        ``None`` where the source names no file.

    Raises:
        PairError: it names one on the hub that cannot be had.
    """
    path = Path(source).expanduser()
    found = HUB_FILE.fullmatch(source) if isinstance(source, str) and not path.exists() else None
    if found is None:
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(found[1], found[2]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0].rstrip(".")
        raise PairError(
            f"{source} cannot be had: {cause}. Check the spelling and the network, run `hf download {found[1]} "
            f"{found[2]}` where there is one, or give a local file."
        ) from error


def _converter(source: str, denoiser_class: type) -> Callable[[Keywords], KeywordsView]:
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    entry = SINGLE_FILE_LOADABLE_CLASSES.get(denoiser_class.__name__)
    if entry is None:
        raise PairError(
            f"{source!r} is not in diffusers' layout, and diffusers converts no single file to a "
            f"{denoiser_class.__name__}. Save the denoiser with save_pretrained(folder) and give the folder."
        )
    return entry["checkpoint_mapping_fn"]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
