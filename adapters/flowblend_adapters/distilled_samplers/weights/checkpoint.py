"""A whole distilled checkpoint in the place of a denoiser's weights for a while.

The module stays the one that the pipeline and the router know; only the data of its tensors is another, so that the old
data comes back bit for bit.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowblend_plugins import PairError, StackError

from .weights_file import WeightsFile, tensor_names


def read_checkpoint(file: WeightsFile, letter: str, denoisers: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of a distilled denoiser, by the names that denoiser ``letter`` has for them.

    Raises:
        StackError: it cannot be read, or is of another size or kind than the denoiser.
    """
    denoiser = denoisers[letter]
    path = Path(file.path)
    if path.suffix == ".safetensors":
        tensors = _from_single_file(file, path, denoiser)
    else:
        tensors = _from_model_folder(file, denoiser)
    _check_checkpoint_fits(file.source, tensors, letter, denoisers)
    return tensors


@contextlib.contextmanager
def checkpoint_on(tensors: Mapping[str, Any], denoiser: Any) -> Iterator[None]:
    """The tensors in the place of the denoiser's own, from entering until leaving."""
    own = {name: tensor for name, tensor in _own_tensors(denoiser).items() if name in tensors}
    before = {name: tensor.data for name, tensor in own.items()}
    try:
        for name, tensor in own.items():
            tensor.data = tensors[name].to(device=tensor.device, dtype=tensor.dtype)
        yield
    finally:
        for name, tensor in own.items():  # it may have been moved in between
            tensor.data = before[name].to(device=tensor.device)


def _own_tensors(denoiser: Any) -> dict[str, Any]:
    """Weights and saved buffers by the names they have without LoRAs, and without what LoRAs add."""
    saved = denoiser.state_dict(keep_vars=True)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in saved.items() if ".lora_" not in name}


def _from_single_file(file: WeightsFile, path: Path, denoiser: Any) -> dict[str, Any]:
    from safetensors.torch import load_file

    names = set(tensor_names(path))
    if 2 * len(names & _own_tensors(denoiser).keys()) > len(names):  # else under the names of the authors' own code
        return load_file(path)
    kind = _plain_class(denoiser)
    try:
        with tempfile.TemporaryDirectory() as folder:  # of its own config, or diffusers would ask the hub for one
            denoiser.save_config(folder)
            model = kind.from_single_file(str(path), config=folder, local_files_only=True)
    except Exception as error:  # diffusers' converters raise whatever an unknown file makes them stumble over
        raise StackError(
            f"{file.source!r} is no checkpoint of a {kind.__name__} of this size: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}. Give one that was distilled from it, or "
            "its folder in diffusers' format."
        ) from error
    return dict(model.state_dict())


def _from_model_folder(file: WeightsFile, denoiser: Any) -> dict[str, Any]:
    from flowblend_plugins.pairs.stored import find_denoiser

    try:
        stored = find_denoiser(file.path, "transformer")
        model = stored.load(getattr(denoiser, "dtype", None))
    except PairError as error:
        raise StackError(str(error)) from error
    tensors = dict(model.state_dict())
    folder = stored.folder / stored.subfolder
    dropped = {name for weights in folder.glob("*.safetensors") for name in tensor_names(weights)} - tensors.keys()
    if dropped:
        raise StackError(
            f"{file.source!r} has {len(dropped)} tensors that a {type(model).__name__} of diffusers has no place for, "
            f"{sorted(dropped)[0]!r} among them, so it would not compute what it was distilled to. Use a checkpoint of "
            "the plain architecture."
        )
    return tensors


def _check_checkpoint_fits(source: str, tensors: Mapping[str, Any], letter: str, denoisers: Mapping[str, Any]) -> None:
    wrong = _misfit(tensors, denoisers[letter])
    if wrong is None:
        return
    kind = _plain_class(denoisers[letter]).__name__
    others = [other for other, module in denoisers.items() if other != letter and _misfit(tensors, module) is None]
    remedy = (
        f"It fits denoiser {others[0]}: name it for that one."
        if others
        else f"Give a checkpoint that was distilled from this {kind}."
    )
    raise StackError(f"{source!r} is not of the size of denoiser {letter} ({kind}): {wrong}. {remedy}")


def _misfit(tensors: Mapping[str, Any], denoiser: Any) -> str | None:
    """The first difference from the denoiser's own tensors, in words; ``None`` where there is none."""
    own = _own_tensors(denoiser)
    for name, tensor in own.items():
        if name not in tensors:
            return f"{name} is missing"
        if tensor.shape != tensors[name].shape:
            there, here = list(tensors[name].shape), list(tensor.shape)
            return f"{name} is {there} there, and {here} in the denoiser"
    further = sorted(tensors.keys() - own.keys())
    return f"{further[0]} is not in the denoiser" if further else None


def _plain_class(denoiser: Any) -> Any:
    """The denoiser's class as diffusers exports it, whatever was put over it."""
    import diffusers

    return getattr(diffusers, type(denoiser).__name__, type(denoiser))
