"""A whole distilled checkpoint in the place of a denoiser's weights for a while.

The module stays the one that the pipeline and the router know; only the data of its tensors is another, so that the old
data comes back bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from flowblend_plugins import PairError, StackError
from flowblend_plugins.types import Denoiser, Keywords, KeywordsView

from .weights_file import WeightsFile, tensor_names


def read_checkpoint(file: WeightsFile, letter: str, denoisers: Mapping[str, Denoiser]) -> Keywords:
    """Tensors of a distilled denoiser, by the names that denoiser ``letter`` has for them.

    Raises:
        StackError: it cannot be read, or is of another size or kind than the denoiser.
    """
    denoiser = denoisers[letter]
    _refuse_quantised(file.source, letter, denoiser)
    path = Path(file.path)
    if path.suffix == ".safetensors":
        tensors = _from_single_file(file, path, letter, denoisers)
    else:
        tensors = _from_model_folder(file, denoiser)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_checkpoint_fits(file.source, shapes, letter, denoisers)
    return tensors


@contextlib.contextmanager
def checkpoint_on(tensors: KeywordsView, denoiser: Denoiser) -> Iterator[None]:
    """The tensors in the place of the denoiser's own, from entering until leaving."""
    own = {name: tensor for name, tensor in _own_tensors(denoiser).items() if name in tensors}
    before = {name: tensor.data for name, tensor in own.items()}
    merged = _merged_loras(denoiser)
    try:
        for name, tensor in own.items():
            tensor.data = tensors[name].to(device=tensor.device, dtype=tensor.dtype)
        yield
    finally:
        for name, tensor in own.items():  # it may have been moved in between
            tensor.data = before[name].to(device=tensor.device)
    if _merged_loras(denoiser) != merged:
        raise StackError(
            "LoRAs were merged into a denoiser, or unmerged, while distilled weights were in the place of its own, "
            "which therefore do not have them. Load the denoiser again."
        )


def _merged_loras(denoiser: Denoiser) -> list[list[str]]:
    return [module.merged_adapters[:] for module in denoiser.modules() if hasattr(module, "merged_adapters")]


def _own_tensors(denoiser: Denoiser) -> Keywords:
    """Weights and saved buffers by the names they have without LoRAs, and without what LoRAs add."""
    saved = denoiser.state_dict(keep_vars=True)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in saved.items() if ".lora_" not in name}


def _from_single_file(file: WeightsFile, path: Path, letter: str, denoisers: Mapping[str, Denoiser]) -> Keywords:
    from flowblend_plugins.pairs.single_file import SingleFile

    kind, own = _plain_class(denoisers[letter]), _own_tensors(denoisers[letter])
    try:
        stored = SingleFile(file.source, path)
        shapes = stored.shapes(kind, set(own))
        if shapes is not None:  # a file of another size is told before it is read
            _check_checkpoint_fits(file.source, shapes, letter, denoisers)
        return stored.read(kind, set(own), lambda name: own[name].dtype if name in own else own[next(iter(own))].dtype)
    except PairError as error:
        raise StackError(str(error)) from error
    except StackError:
        raise
    except Exception as error:  # diffusers' converters raise whatever an unknown file makes them stumble over
        raise StackError(
            f"{file.source!r} is no checkpoint of a {kind.__name__} of this size: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}. Give one that was distilled from it, or "
            "its folder in diffusers' format."
        ) from error


def _from_model_folder(file: WeightsFile, denoiser: Denoiser) -> Keywords:
    from flowblend_plugins.pairs.stored import find_denoiser
    from flowblend_plugins.pairs.stored_file import StoredFile

    try:
        stored = find_denoiser(file.path, "transformer")
        model = stored.load(getattr(denoiser, "dtype", None))
    except PairError as error:
        raise StackError(str(error)) from error
    tensors = dict(model.state_dict())
    if isinstance(stored, StoredFile):
        return tensors
    folder = stored.folder / stored.subfolder
    dropped = {name for weights in folder.glob("*.safetensors") for name in tensor_names(weights)} - tensors.keys()
    if dropped:
        raise StackError(
            f"{file.source!r} has {len(dropped)} tensors that a {type(model).__name__} of diffusers has no place for, "
            f"{sorted(dropped)[0]!r} among them, so it would not compute what it was distilled to. Use a checkpoint of "
            "the plain architecture."
        )
    return tensors


def _check_checkpoint_fits(
    source: str, shapes: Mapping[str, tuple[int, ...]], letter: str, denoisers: Mapping[str, Denoiser]
) -> None:
    wrong = _misfit(shapes, denoisers[letter])
    if wrong is None:
        return
    kind = _plain_class(denoisers[letter]).__name__
    others = [other for other, module in denoisers.items() if other != letter and _misfit(shapes, module) is None]
    remedy = (
        f"It fits denoiser {others[0]}: name it for that one."
        if others
        else f"Give a checkpoint that was distilled from this {kind}."
    )
    raise StackError(f"{source!r} is not of the size of denoiser {letter} ({kind}): {wrong}. {remedy}")


def _misfit(shapes: Mapping[str, tuple[int, ...]], denoiser: Denoiser) -> str | None:
    """The first difference from the denoiser's own tensors, in words; ``None`` where there is none."""
    own = _own_tensors(denoiser)
    for name, tensor in own.items():
        if name not in shapes:
            return f"{name} is missing"
        if tuple(tensor.shape) != shapes[name]:
            return f"{name} is {list(shapes[name])} there, and {list(tensor.shape)} in the denoiser"
    further = sorted(shapes.keys() - own.keys())
    return f"{further[0]} is not in the denoiser" if further else None


def _refuse_quantised(source: str, letter: str, denoiser: Denoiser) -> None:
    """Weights that are no plain tensors keep their values elsewhere, so that other data would not reach them."""
    import torch

    for name, tensor in _own_tensors(denoiser).items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and type(tensor.data) is torch.Tensor
        if not plain or not (tensor.is_floating_point() or tensor.dtype is torch.bool):
            kind = type(tensor.data if plain else tensor).__name__
            raise StackError(
                f"denoiser {letter} is quantised ({name} is a {kind} of {tensor.dtype}), so the checkpoint "
                f"{source!r} cannot take the place of its weights. Load the checkpoint itself, quantise it, and say "
                '"as_loaded"; or blend without quantisation.'
            )


def _plain_class(denoiser: Denoiser) -> type:
    """The denoiser's class as diffusers exports it, whatever was put over it."""
    import diffusers

    return getattr(diffusers, type(denoiser).__name__, type(denoiser))
