"""What ``enable()`` does to the pipeline object: further denoisers become components, and calls become generations.

Both are done with a dynamic subclass of the pipeline's own class, so that setting the class back is the undo. As
components, the further denoisers are covered by ``to``, offloading, saving and the end-of-call reset.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .errors import RoutingError

# These step copies of their scheduler, one for each frame block, so that nothing shows at which step a call stands.
_UNROUTABLE = {
    "SkyReelsV2DiffusionForcingPipeline",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
}

RunGeneration = Callable[[Callable[..., Any], dict[str, Any]], Any]


def denoiser_slot(pipe: Any) -> str:
    """``"transformer"`` or ``"unet"``: the component of a diffusers pipeline that is its denoiser.

    Raises:
        RoutingError: the object is no diffusers pipeline, has no denoiser, or cannot be routed rightly.
    """
    from diffusers import DiffusionPipeline

    name = type(pipe).__name__
    if not isinstance(pipe, DiffusionPipeline):
        raise RoutingError(f"expected a diffusers pipeline, found {name}. Pass what from_pretrained() returns.")
    if name in _UNROUTABLE:
        raise RoutingError(
            f"{name} steps copies of its scheduler, so the step of a denoiser call cannot be known and the small "
            "denoiser would silently never run. Use SkyReelsV2Pipeline instead."
        )
    for slot in ("transformer", "unet"):
        if isinstance(getattr(pipe, slot, None), nn.Module):
            return slot
    raise RoutingError(f"{name} has no denoiser: neither its `transformer` nor its `unet` is a loaded module.")


def called_denoisers(pipe: Any, slot: str) -> tuple[nn.Module, ...]:
    """The denoisers that the pipeline itself calls: one, or both experts of a Wan 2.2 pipeline."""
    hosts = [getattr(pipe, slot)]
    second = getattr(pipe, f"{slot}_2", None)
    if pipe.config.get("boundary_ratio") is not None and isinstance(second, nn.Module):
        hosts.append(second)
    return tuple(hosts)


class EnabledPipeline:
    """A pipeline with further denoisers as components, whose calls run through ``run_generation``."""

    def __init__(self, pipe: Any, slot: str, further: Sequence[nn.Module], run_generation: RunGeneration) -> None:
        self._pipe = pipe
        self._slot = slot
        self._further = tuple(further)
        self._run_generation = run_generation
        self._base = type(pipe)
        self._attributes = dict(pipe.__dict__)
        self._hook_registries = {id(m): "_diffusers_hook" in m.__dict__ for m in self._modules()}

    def _modules(self) -> tuple[nn.Module, ...]:
        return (*called_denoisers(self._pipe, self._slot), *self._further)

    def attach(self) -> None:
        pipe = self._pipe
        present = [c for c in pipe.components.values() if isinstance(c, nn.Module)]
        missing = [m for m in self._further if not any(m is p for p in present)]
        names = self._free_slots(len(missing))
        pipe.__class__ = _enabled_class(self._base, self._slot, names, self._run_generation)
        self._added = dict(zip(names, missing, strict=True))
        if self._added:
            pipe.register_modules(**self._added)
            if getattr(pipe, "_all_hooks", None):  # model offloading was on: the newcomers take part
                pipe.enable_model_cpu_offload(device=pipe._offload_device)

    def detach(self) -> None:
        pipe = self._pipe
        offloaded = bool(getattr(pipe, "_all_hooks", None))
        if offloaded and self._added:
            pipe.remove_all_hooks()
        for name in self._added:
            if name in self._attributes:
                object.__setattr__(pipe, name, self._attributes[name])
            else:
                pipe.__dict__.pop(name, None)
        if self._added:
            pipe._internal_dict = self._attributes["_internal_dict"]
        pipe.__class__ = self._base
        if offloaded and self._added:
            pipe.enable_model_cpu_offload(device=pipe._offload_device)
        for module in self._modules():
            _drop_empty_registry(module, self._hook_registries[id(module)])

    def _free_slots(self, count: int) -> list[str]:
        names: list[str] = []
        number = 2
        while len(names) < count:
            name = f"{self._slot}_{number}"
            if getattr(self._pipe, name, None) is None:
                names.append(name)
            number += 1
        return names


def _enabled_class(base: type, slot: str, names: Sequence[str], run_generation: RunGeneration) -> type:
    plain_init = base.__init__
    signature = inspect.signature(plain_init)
    new = [n for n in names if n not in signature.parameters]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)

    # diffusers reads a pipeline's components off the signature of its __init__.
    added = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in new]
    plain = list(signature.parameters.values())
    variadic = [p for p in plain if p.kind is inspect.Parameter.VAR_KEYWORD]
    __init__.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*(p for p in plain if p not in variadic), *added, *variadic]
    )
    positional = list(inspect.signature(base.__call__).parameters)[1:]

    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = dict(zip(positional, args, strict=False)) | kwargs
        return run_generation(functools.partial(base.__call__, self), arguments)

    sequence = getattr(base, "model_cpu_offload_seq", None)
    if sequence:
        order = sequence.split("->")
        after = order.index(slot) + 1 if slot in order else len(order)
        order[after:after] = [n for n in names if n not in order]
        sequence = "->".join(order)
    return type(
        base.__name__,
        (base,),
        {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__init__": __init__,
            "__call__": __call__,
            "_optional_components": [*base._optional_components, *new],  # type: ignore[attr-defined]
            "model_cpu_offload_seq": sequence,
            "_flowblend_enabled": True,
        },
    )


def is_enabled(pipe: Any) -> bool:
    """Whether FlowBlending is enabled on this pipeline."""
    return getattr(type(pipe), "_flowblend_enabled", False)


def _drop_empty_registry(module: nn.Module, was_there: bool) -> None:
    """diffusers puts an empty hook registry on a module whose cache state is reset; take ours away again."""
    registry = module.__dict__.get("_diffusers_hook")
    if registry is not None and not was_there and not registry.hooks:
        del module._diffusers_hook
