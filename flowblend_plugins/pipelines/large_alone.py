"""Settings of the large denoiser alone that change what it computes: mirrored on the others, or refused.

Skipped blocks, attention processors and backends, an IP-Adapter, a patched ``forward``: a user or a pipeline sets them
on ``pipe.transformer``, and a small denoiser that answers without them answers something else. They are found by what
stands on the modules (:mod:`.standing`), not by the names of the techniques.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import nn

from ..errors import RoutingError
from ..types import Args, Denoiser, Pipeline
from .standing import Patch, block_lists, package_of, patches_on

_WHAT = {
    "hook": "a hook",
    "forward": "a function in the place of forward()",
    "class forward": "a class with another forward()",
    "processor": "an attention processor",
    "backend": "an attention backend",
}
_REMEDY = {
    **dict.fromkeys(_WHAT, "Take it off, or put it on denoiser {letter} too"),
    "processor": (
        "Take it off (an IP-Adapter: pipe.unload_ip_adapter()), or give denoiser {letter} processors of this class too "
        "(an IP-Adapter: load it into a pipeline of that denoiser)"
    ),
}


@contextlib.contextmanager
def mirrored(
    large: nn.Module, others: Mapping[str, nn.Module], patches: Sequence[Patch], claimed: Collection[str] = ()
) -> Iterator[None]:
    """Put on other denoisers, for a while, what changes the outputs of the large one and means the same on them.

    Args:
        large: the denoiser that the pipeline calls.
        others: those that answer in its place, by letter.
        patches: those of the large denoiser that are looked at.
        claimed: hooks, and packages of ``forward`` functions, that adapters take over.

    Raises:
        RoutingError: something has no meaning on another denoiser; with what it is and what to do.
    """
    wanted = [patch for patch in patches if not _is_claimed(patch, claimed) and not _is_default(patch, large)]
    with contextlib.ExitStack() as undo:
        for letter, other in others.items():
            present, done = {_kind_of(patch) for patch in patches_on(other)}, set[Args]()
            for patch in wanted:
                kind = _kind_of(patch)
                for module in () if kind in present else _places(patch, large, letter, other):
                    if (*kind, module) not in done:
                        undo.enter_context(_put_on(patch, module))
                        done.add((*kind, module))
        yield


def refuse_what_fits_one(pipe: Pipeline, large: nn.Module, others: Mapping[str, nn.Module]) -> None:
    """Refuse components of a pipeline that act on denoisers of the large one's shape only.

    Raises:
        RoutingError: with the component, and what to do.
    """
    guider = pipe.components.get("guider")
    if others and guider is not None and _changes_denoisers(guider):
        raise RoutingError(
            f"the guider of this {type(pipe).__name__} ({type(guider).__name__}) changes the large denoiser during a "
            "step, and the small one would answer unchanged. Use a guider that changes none, such as "
            'ClassifierFreeGuidance, or schedule "LLL".'
        )
    if pipe.components.get("controlnet") is None:
        return
    for letter, other in others.items():
        wanted, found = _residuals_of(large), _residuals_of(other)
        if wanted != found:
            raise RoutingError(
                f"the ControlNet of this {type(pipe).__name__} gives residuals for the blocks of the large denoiser "
                f"({wanted}), which do not fit denoiser {letter} ({found}). Use a small denoiser with the same blocks, "
                f"or a schedule that does not call {letter}."
            )


def _residuals_of(denoiser: Denoiser) -> str:
    """Facts that decide how many residuals of a ControlNet a denoiser takes, and how wide they are."""
    config = denoiser.config
    if "block_out_channels" in config:
        keys = ("block_out_channels", "layers_per_block", "down_block_types")
        return ", ".join(f"{key}={config.get(key)}" for key in keys)
    return f"width={(config.get('num_attention_heads') or 0) * (config.get('attention_head_dim') or 0)}"


def _changes_denoisers(guider: object) -> bool:
    """A guider that cleans up after a call has changed the denoiser for it; the base class does nothing there."""
    base = next((kind for kind in type(guider).__mro__ if kind.__name__ == "BaseGuidance"), None)
    own, of_base = (getattr(kind, "cleanup_models", None) for kind in (type(guider), base))
    return base is not None and own is not of_base


def _is_claimed(patch: Patch, claimed: Collection[str]) -> bool:
    return (package_of(patch.value) if patch.kind == "forward" else patch.name) in claimed


def _place_of(path: str) -> str:
    return re.sub(r"\d+", "*", path)


def _kind_of(patch: Patch) -> Args:
    """Equal for patches that do the same in the same place of any block."""
    if patch.kind in ("forward", "class forward"):
        function = getattr(patch.value, "__func__", patch.value)
        return patch.kind, _place_of(patch.path), getattr(function, "__code__", function)
    return patch.kind, _place_of(patch.path), patch.name, type(patch.value)


def _is_default(patch: Patch, large: nn.Module) -> bool:
    """Whether an attention processor is the one that its module chooses itself, or merely has fused projections."""
    if patch.kind != "processor":
        return False
    from diffusers.models.attention_processor import AttnProcessor2_0

    module = large.get_submodule(patch.path)
    default = getattr(module, "_default_processor_cls", AttnProcessor2_0)
    return type(patch.value) is default or getattr(module, "fused_projections", False) is True


def _places(patch: Patch, large: nn.Module, letter: str, other: nn.Module) -> list[nn.Module]:
    """Modules of another denoiser on which a patch of the large one means the same; the error where there are none."""
    if patch.kind in ("processor", "backend") and not _holds_tensors(patch.value):
        alike = [_kind_of(one) for one in patches_on(large) if one.kind == patch.kind]
        if all(kind == _kind_of(patch) for kind in alike if kind[1] == _place_of(patch.path)):
            return [
                module
                for path, module in other.named_modules()
                if _place_of(path) == _place_of(patch.path) and hasattr(module, "processor")
            ]
    depths = [{name: len(blocks) for name, blocks in block_lists(one).items()} for one in (large, other)]
    places = [module for path, module in other.named_modules() if path == patch.path]
    if depths[0] == depths[1] and places and _is_portable(patch):
        return places
    where = f" (at {patch.path})" if patch.path else ""
    remedy = _REMEDY[patch.kind].format(letter=letter)
    raise RoutingError(
        f"{patch.name!r}, {_WHAT[patch.kind]} that was set on the large denoiser{where}, changes what it computes and "
        f"means nothing on denoiser {letter}, which would answer without it. {remedy}, or use a schedule that does not "
        f"call {letter}."
    )


def _is_portable(patch: Patch) -> bool:
    """Whether a patch can act on a module of another denoiser as it does on its own: it holds nothing of that one."""
    if patch.kind == "hook":
        own = {name: value for name, value in vars(patch.value).items() if name != "fn_ref"}
        return not patch.value._is_stateful and not _any_tensors(own.values())
    if patch.kind == "forward":
        return inspect.ismethod(patch.value)
    return patch.kind != "class forward" and not _holds_tensors(patch.value)


def _holds_tensors(value: object) -> bool:
    return isinstance(value, nn.Module) or _any_tensors(getattr(value, "__dict__", {}).values())


def _any_tensors(values: Iterable[object]) -> bool:
    return any(isinstance(value, (torch.Tensor, nn.Module)) for value in values)


@contextlib.contextmanager
def _put_on(patch: Patch, module: nn.Module) -> Iterator[None]:
    """One patch of the large denoiser on a module of another, from entering until leaving."""
    own = vars(module)
    if patch.kind == "hook":
        from diffusers.hooks import HookRegistry, ModelHook

        had_registry, had_forward = "_diffusers_hook" in own, "forward" in own
        registry = HookRegistry.check_if_exists_or_initialize(module)
        registry.register_hook(cast(ModelHook, copy.copy(patch.value)), patch.name)
        try:
            yield
        finally:
            registry.remove_hook(patch.name, recurse=False)
            if not had_registry and not registry.hooks:
                own.pop("_diffusers_hook", None)
            if not had_forward and getattr(own.get("forward"), "__func__", None) is type(module).forward:
                del own["forward"]
        return
    owner, name, value = {
        "forward": lambda: (own, "forward", types.MethodType(patch.value.__func__, module)),
        "processor": lambda: (own, "processor", copy.copy(patch.value)),
        "backend": lambda: (vars(module.processor), "_attention_backend", patch.value),
    }[patch.kind]()
    had, before = name in owner, owner.get(name)
    owner[name] = value
    try:
        yield
    finally:
        if owner.get(name) is value:
            owner.pop(name)
            if had:
                owner[name] = before
