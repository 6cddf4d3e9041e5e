"""Finding and loading a small denoiser that is kept in a folder or on the Hugging Face hub.

Safetensors only: pickle executes what it holds. Classes are diffusers' own, by the name in ``config.json``; code that a
repository brings along is never run. A folder is read without network; only a hub id may reach out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..errors import PairError
from ..types import Keywords, KeywordsView
from .configs import configs_of_folder, diffusers_class, kind_of, read_json
from .facts import Config
from .single_file import find_single_file, refuse_not_finite
from .sources import PICKLE_SUFFIXES, refuse_absent
from .stored_file import StoredFile, stored_file

# Configs only: some kilobytes, whatever the model's size.
_CONFIG_FILES = ["model_index.json", "config.json", "*/config.json", "*/scheduler_config.json"]
_CONVERT = (
    "Convert them where you trust their origin: load the model there with from_pretrained(..., use_safetensors=False) "
    "and write it with model.save_pretrained(folder), which makes safetensors."
)


@dataclass(frozen=True)
class StoredDenoiser:
    """A denoiser that was found but not loaded yet.

    Attributes:
        source: what the user wrote.
        folder: the local folder with its configs; of a hub id, the snapshot in the hub's cache.
        subfolder: where in it the denoiser is; empty where it stands alone.
        hub_id: the hub id, or ``None`` for a local folder.
        denoiser_class: its diffusers class.
        configs: its description, component name to config.
    """

    source: str
    folder: Path
    subfolder: str
    hub_id: str | None
    denoiser_class: Any
    configs: Mapping[str, Config]

    def load(self, dtype: torch.dtype | None, further: KeywordsView = MappingProxyType({})) -> nn.Module:
        """The denoiser on the CPU in ``dtype``, in evaluation mode.

        Args:
            dtype: of its weights.
            further: keyword arguments for ``from_pretrained``.

        Raises:
            PairError: its weights are missing, incomplete, damaged or pickled.
        """
        local = self.folder / self.subfolder
        options: Keywords = {"use_safetensors": True, "dtype": dtype, "output_loading_info": True, **further}
        if self.hub_id is None:
            options |= {"local_files_only": True, "variant": _find_weights(self.source, local)}
            where = str(local)
        else:
            options |= {"revision": self.folder.name, "subfolder": self.subfolder or None}
            where = self.hub_id
        try:
            denoiser, info = self.denoiser_class.from_pretrained(where, **options)
        except Exception as error:  # diffusers raises OSError, ValueError, RuntimeError and the hub's own alike
            raise PairError(
                f"the denoiser in {self.source!r} could not be loaded: {_first_line(error)} Check that its safetensors "
                "file is complete and belongs to its config.json, or download it again. Pickled weights are refused."
            ) from error
        if info["missing_keys"]:
            raise PairError(
                f"the weights in {self.source!r} are incomplete: {len(info['missing_keys'])} tensors of "
                f"{self.denoiser_class.__name__} are missing, {sorted(info['missing_keys'])[0]} among them, and would "
                "stay random. Download or save the denoiser again."
            )
        for name, tensor in () if "quantization_config" in further else denoiser.state_dict().items():
            refuse_not_finite(self.source, name, tensor)
        return denoiser


def find_denoiser(source: str | Path, slot: str) -> StoredDenoiser | StoredFile:
    """Find a denoiser by folder, single file or hub id and read its configs; no weights yet.

    Args:
        source: a folder (of a pipeline or of a denoiser), a single safetensors file, a hub id such as ``"org/name"``,
            or a file of a hub repository, ``"org/name/file.safetensors"``.
        slot: ``"transformer"`` or ``"unet"``: where the large pipeline has its denoiser.

    Raises:
        PairError: there is no such folder or repository, or it holds no denoiser that diffusers knows.
    """
    file = find_single_file(source)
    if file is not None and file.suffix == ".safetensors":
        return stored_file(source, file)
    folder, hub_id = _resolve(source)
    name = str(source)
    if (folder / "model_index.json").is_file():
        subfolder = _pipeline_subfolder(name, folder, slot)
    elif (folder / "config.json").is_file():
        subfolder = ""
    else:
        raise PairError(_no_model(name, folder))
    denoiser_folder = folder / subfolder
    class_name = read_json(denoiser_folder / "config.json").get("_class_name")
    denoiser_class = diffusers_class(class_name)
    if denoiser_class is None or kind_of(denoiser_class) is None:
        raise PairError(
            f"{name!r} holds a {class_name}, which is no denoiser that diffusers exports, and code from a model folder "
            "is never run. Pass a diffusers pipeline or denoiser, or load the denoiser yourself and pass the object."
        )
    configs = configs_of_folder(folder, denoiser_folder, denoiser_class)
    return StoredDenoiser(name, folder, subfolder, hub_id, denoiser_class, configs)


def _resolve(source: str | Path) -> tuple[Path, str | None]:
    path = Path(source).expanduser()
    if path.is_dir():
        return path, None
    if path.is_file():
        if path.suffix in PICKLE_SUFFIXES:
            raise PairError(f"{str(source)!r} is a pickle file, and pickle is refused: it can run any code. {_CONVERT}")
        raise PairError(
            f"{str(source)!r} is a file of another format than safetensors. Load it with the denoiser class's "
            "from_single_file() (for GGUF with quantization_config=GGUFQuantizationConfig(...)) and pass the object."
        )
    refuse_absent(source)
    return _hub_snapshot(str(source)), str(source)


def _hub_snapshot(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_CONFIG_FILES))
    except GatedRepoError as error:
        raise PairError(
            f"the hub repository {hub_id!r} is gated. Accept its terms on huggingface.co and log in with "
            "`hf auth login`, or pass a local folder."
        ) from error
    except RepositoryNotFoundError as error:
        raise PairError(
            f"there is no hub repository {hub_id!r} (or it is private), and no such folder here. Check the spelling, "
            "or log in with `hf auth login`."
        ) from error
    except LocalEntryNotFoundError as error:
        raise PairError(
            f"{hub_id!r} is no folder here, as a hub id it is not in the local cache, and the hub cannot be reached. "
            f"Check the path; or go online (and unset HF_HUB_OFFLINE); or run `hf download {hub_id}` where there is a "
            "network and pass the folder."
        ) from error
    except (OSError, ValueError) as error:
        raise PairError(
            f"the hub id {hub_id!r} could not be read: {_first_line(error)} Pass a local folder."
        ) from error


def _pipeline_subfolder(name: str, folder: Path, slot: str) -> str:
    if (folder / slot / "config.json").is_file():
        return slot
    index = read_json(folder / "model_index.json")
    others = sorted(child.name for child in folder.iterdir() if (child / "config.json").is_file())
    raise PairError(
        f"{name!r} is a {index.get('_class_name')} without a `{slot}` folder (it holds {', '.join(others) or 'none'}), "
        f"but the large denoiser is its pipeline's `{slot}`. Pass a pipeline of the same family."
    )


def _no_model(name: str, folder: Path) -> str:
    if any(file.suffix in PICKLE_SUFFIXES for file in folder.iterdir()):
        return f"{name!r} holds pickle files and no config.json, and pickle is refused: it can run any code. {_CONVERT}"
    return (
        f"{name!r} is no diffusers pipeline and no denoiser: it has neither model_index.json nor config.json. "
        "Pass the folder that save_pretrained() wrote."
    )


def _find_weights(name: str, folder: Path) -> str | None:
    """The variant to load (``"fp16"``), ``None`` where the plain weights are there."""
    names = {file.name for file in folder.iterdir()}
    plain = {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"}
    if names & plain:
        return None
    pattern = re.compile(r"diffusion_pytorch_model(?:\.safetensors\.index)?\.(\w+)\.(?:safetensors|json)")
    variants = sorted({found[1] for found in map(pattern.fullmatch, names) if found})
    if variants:
        return variants[0]
    if pickled := sorted(n for n in names if n.endswith(PICKLE_SUFFIXES)):
        raise PairError(
            f"{name!r} holds its weights as pickle only ({pickled[0]}), and pickle is refused: it can run any code. "
            f"{_CONVERT}"
        )
    raise PairError(
        f"{name!r} has a config but no weights: no diffusion_pytorch_model.safetensors in {folder}. Save the denoiser "
        "again with save_pretrained(), or finish the download."
    )


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return line if line.endswith(".") else line + "."
