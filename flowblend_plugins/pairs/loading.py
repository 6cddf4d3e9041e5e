"""Loading a denoiser from a folder or the hub, and checking that two denoisers can be blended."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeGuard, cast

import torch
from torch import nn

from ..errors import PairError
from ..pipelines.source import read_source
from ..types import Denoiser, KeywordsView, Pipeline
from .configs import configs_of_denoiser, configs_of_pipeline, forward_parameters
from .facts import Difference, differences
from .stored import find_denoiser


class LoadingOptions(NamedTuple):
    """Loading of a denoiser that is given by id or folder, and where any denoiser may stand.

    Attributes:
        given: keyword arguments for ``from_pretrained`` (``quantization_config``, for one), and ``storage_dtype``, in
            which ``enable_layerwise_casting`` then keeps its weights.
        may_be_on_cpu: it is moved to the large one's device when its stage comes.
    """

    given: KeywordsView = types.MappingProxyType({})
    may_be_on_cpu: bool = False

    def without_options(self) -> LoadingOptions:
        """Leave the options for the small denoiser out."""
        return self._replace(given=types.MappingProxyType({}))


_DEFAULT = LoadingOptions()


def load_denoiser(source: object, pipe: Pipeline, slot: str, loading: LoadingOptions = _DEFAULT) -> nn.Module:
    """A denoiser from a hub id, a folder, a loaded pipeline or a loaded denoiser.

    What is loaded here has the large denoiser's dtype and stands where the large one computes. A stored pair is judged
    by its configs first, so that a refusal costs no download and no reading of weights.

    Raises:
        PairError: nothing can be loaded from the source, what is stored there cannot be blended, or there are options
            for what is loaded already.
    """
    if loading.given and not isinstance(source, (str, Path)):
        raise PairError(
            f"small_options has {', '.join(sorted(loading.given))}, but the small denoiser is loaded already. Load it "
            "with these options yourself, or pass its hub id or folder."
        )
    if isinstance(source, nn.Module):
        return source
    if isinstance(source, (str, Path)):
        large = getattr(pipe, slot)
        stored = find_denoiser(source, slot)
        found = [
            *differences(configs_of_pipeline(pipe, slot), stored.configs),
            *_call_differences(pipe, type(large), stored.denoiser_class),
        ]
        _refuse(f"the denoiser in {str(source)!r}", large, found)
        options = dict(loading.given)
        storage_dtype = options.pop("storage_dtype", None)
        dtype = getattr(large, "dtype", None)
        denoiser = stored.load(dtype, options)
        if storage_dtype is not None:
            cast(Denoiser, denoiser).enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=dtype)
        device = None if loading.may_be_on_cpu or "device_map" in options else _compute_device(pipe, large)
        return denoiser if device is None else denoiser.to(device)
    if _is_pipeline(source):
        denoiser = getattr(source, slot, None)
        if isinstance(denoiser, nn.Module):
            return denoiser
        raise PairError(
            f"the given {type(source).__name__} has no loaded `{slot}`, but the large denoiser is its pipeline's "
            f"`{slot}`. Pass a pipeline of the same family, or a denoiser."
        )
    raise PairError(
        f"a small denoiser cannot be made from {source!r} ({type(source).__name__}). Pass a hub id, a folder, a loaded "
        "diffusers pipeline or a loaded denoiser."
    )


def check_blendable(
    pipe: Pipeline, slot: str, letter: str, candidate: nn.Module, source: object, loading: LoadingOptions = _DEFAULT
) -> None:
    """Refuse a loaded denoiser that cannot continue the large one's trajectory, naming every difference.

    Where the source is a pipeline, its VAE, text encoders and scheduler are compared too; a lone denoiser says nothing
    of them. Denoisers from folders and hub ids were judged by :func:`load_denoiser`.

    Raises:
        PairError: with every difference, both values, and what to do.
    """
    from diffusers.models.modeling_utils import ModelMixin

    large = getattr(pipe, slot)
    name = f"denoiser {letter} (a {type(candidate).__name__})"
    if candidate is large:
        raise PairError(f"{name} is the large denoiser itself, so no schedule would save anything. Pass a smaller one.")
    if not isinstance(candidate, ModelMixin):
        raise PairError(
            f"{name} is no diffusers model, so its inputs cannot be compared with the large one's. Pass a denoiser of "
            "diffusers, such as a transformer that from_pretrained() returns."
        )
    if isinstance(source, (str, Path)):
        return
    small = configs_of_pipeline(source, slot) if _is_pipeline(source) else configs_of_denoiser(candidate)
    found = [
        *differences(configs_of_pipeline(pipe, slot), small),
        *_call_differences(pipe, type(large), type(candidate)),
        *_tensor_differences(pipe, large, candidate, loading.may_be_on_cpu),
    ]
    _refuse(name, large, found)


def _refuse(name: str, large: nn.Module, found: list[Difference]) -> None:
    if not found:
        return
    listed = "; ".join(f"{d.meaning}: {d.small}, but {d.large} for the large one" for d in found)
    remedies = "; ".join(dict.fromkeys(d.remedy for d in found))
    raise PairError(
        f"{name} cannot share a trajectory with the large {type(large).__name__}: {listed}. To do: {remedies}."
    )


def _call_differences(pipe: Pipeline, large_class: type, small_class: type) -> Iterable[Difference]:
    """Both denoisers are called alike: the small one must take what the pipeline passes, and need nothing more."""
    wanted, accepted = forward_parameters(large_class), forward_parameters(small_class)
    remedy = f"use a denoiser that {type(pipe).__name__} itself can call"
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        passed = wanted.keys() & (read_source(pipe).call_keywords or wanted.keys())
        if refused := sorted(passed - accepted.keys()):
            yield Difference("arguments taken by forward()", f"with {', '.join(refused)}", "without them", remedy)
    needed = {
        key for key, p in accepted.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    if unmet := sorted(needed - wanted.keys()):
        yield Difference("arguments needed by forward()", "without them", f"with {', '.join(unmet)}", remedy)


def _tensor_differences(
    pipe: Pipeline, large: nn.Module, candidate: Denoiser, may_be_on_cpu: bool
) -> Iterable[Difference]:
    dtype = getattr(large, "dtype", None)
    if dtype is not None and candidate.dtype != dtype:
        yield Difference("dtype", str(dtype), str(candidate.dtype), f"convert it with small.to({dtype})")
    device = _compute_device(pipe, large)
    if may_be_on_cpu and candidate.device.type == "cpu":
        return
    if (
        device is not None
        and not _is_offloaded(cast(nn.Module, candidate))
        and _placed(candidate.device) != _placed(device)
    ):
        yield Difference("device", str(device), str(candidate.device), f"move it with small.to({str(device)!r})")


def _compute_device(pipe: Pipeline, large: nn.Module) -> torch.device | None:
    """Device that a further denoiser must be on; ``None`` where model offloading takes care of it."""
    from diffusers.hooks.group_offloading import _get_group_onload_device, _is_group_offload_enabled

    if getattr(pipe, "_all_hooks", None):
        return None
    if _is_group_offload_enabled(large):
        return _get_group_onload_device(large)
    for module in large.modules():  # sequential offloading leaves the weights themselves on the meta device
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return getattr(large, "device", None)


def _is_offloaded(module: nn.Module) -> bool:
    from diffusers.hooks.group_offloading import _is_group_offload_enabled

    return hasattr(module, "_hf_hook") or _is_group_offload_enabled(module)


def _placed(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0


def _is_pipeline(source: object) -> TypeGuard[Pipeline]:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    return isinstance(source, DiffusionPipeline)
