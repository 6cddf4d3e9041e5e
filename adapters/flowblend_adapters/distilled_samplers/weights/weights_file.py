"""Finding the weights of a distilled denoiser: a LoRA, or a whole checkpoint, by hub id, folder or file.

Safetensors only: pickle executes what it holds. Nothing is downloaded but the file that is used, and configs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from flowblend_plugins import StackError
from flowblend_plugins.types import Keywords

LORA_FILE = "pytorch_lora_weights.safetensors"
SAMPLING_FILE = "distilled.json"
_PIPELINE_OR_DENOISER = ("model_index.json", "config.json")


@dataclass(frozen=True)
class WeightsFile:
    """Distilled weights that were found.

    Attributes:
        source: what the user wrote.
        path: the safetensors file, or the folder or hub id of a whole denoiser.
        is_lora: whether they are added to the denoiser, or take the place of its own.
        sampling: of ``distilled.json`` beside the file: how the weights are meant to be sampled; empty without it.
    """

    source: str
    path: Path | str
    is_lora: bool
    sampling: Keywords


def find_weights(source: str) -> WeightsFile:
    """Find distilled weights without reading them.

    Args:
        source: a file, a folder (of a LoRA, a denoiser or a pipeline), a hub id (``"org/name"``), or a file of a hub
            repository (``"org/name/path/file.safetensors"``).

    Raises:
        StackError: nothing is there, or it is pickle, or several files could be meant.
    """
    from flowblend_plugins.pairs.sources import is_hub_id

    path = Path(source).expanduser()
    if path.is_file():
        return _from_file(source, path)
    if path.is_dir():
        return _from_folder(source, path)
    in_repository = _of_hub(source)
    if in_repository is not None:
        return _from_file(source, in_repository)
    if is_hub_id(source):
        return _from_hub(source)
    raise StackError(
        f"there are no distilled weights at {source!r}: no such file or folder here, and no hub id. Give a "
        '.safetensors file, a folder, "org/name", or "org/name/file.safetensors".'
    )


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file.

    Raises:
        StackError: it is no safetensors file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise StackError(
            f"{str(path)!r} cannot be read as safetensors: {error}. Download it again; other formats are refused."
        ) from error


def _from_file(source: str, path: Path) -> WeightsFile:
    if path.suffix in _pickle_suffixes():
        raise StackError(
            f"{source!r} is a pickle file, and pickle is refused: it can run any code. Convert it to safetensors where "
            "you trust its origin."
        )
    is_lora = any("lora" in name for name in tensor_names(path))
    return WeightsFile(source, path, is_lora, _sampling_beside(path))


def _from_folder(source: str, folder: Path) -> WeightsFile:
    if any((folder / name).is_file() for name in _PIPELINE_OR_DENOISER):
        return WeightsFile(source, folder, False, _sampling_beside(folder / SAMPLING_FILE))
    return _from_file(source, folder / _the_one_file(source, [file.name for file in folder.iterdir()]))


def _from_hub(hub_id: str) -> WeightsFile:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        names = HfApi().list_repo_files(hub_id)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0].rstrip(".")
        raise StackError(
            f"there is nothing at {hub_id!r} here, and as a hub id it cannot be asked for its files: {cause}. Check "
            "the spelling and the network, or give a file that was downloaded."
        ) from error
    if any(name in names for name in _PIPELINE_OR_DENOISER):
        return WeightsFile(hub_id, hub_id, False, {})
    return _from_file(hub_id, _of_hub(f"{hub_id}/{_the_one_file(hub_id, names)}") or Path())


def _the_one_file(source: str, names: list[str]) -> str:
    """Choose the LoRA among the files of a folder or repository."""
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if LORA_FILE in found:
        return LORA_FILE
    if len(found) == 1:
        return found[0]
    if found:
        raise StackError(
            f"{source!r} holds {len(found)} safetensors files ({', '.join(found[:4])}{', ...' * (len(found) > 4)}). "
            f"Say which is meant: {source}/{found[0]}, for example."
        )
    pickled = sorted(name for name in names if name.endswith(_pickle_suffixes()))
    if pickled:
        raise StackError(
            f"{source!r} holds its weights as pickle only ({pickled[0]}), and pickle is refused: it can run any code. "
            "Convert them to safetensors where you trust their origin."
        )
    raise StackError(f"{source!r} holds no .safetensors file. Give the folder or file that holds the weights.")


def _pickle_suffixes() -> tuple[str, ...]:
    from flowblend_plugins.pairs.sources import PICKLE_SUFFIXES

    return PICKLE_SUFFIXES


def _of_hub(source: str) -> Path | None:
    from flowblend_plugins import PairError
    from flowblend_plugins.pairs.single_file import find_single_file  # which loads torch

    try:
        return find_single_file(source)
    except PairError as error:
        raise StackError(str(error)) from error


def _sampling_beside(path: Path) -> Keywords:
    file = path.parent / SAMPLING_FILE
    if not file.is_file():
        return {}
    try:
        sampling = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StackError(f"{str(file)!r} cannot be read as JSON: {error}. Repair it, or take it away.") from error
    if not isinstance(sampling, dict):
        raise StackError(f"{str(file)!r} holds no JSON object. Repair it, or take it away.")
    return sampling
