"""Enabled pipelines: further denoisers become components, and calls become generations.

Both are done with a dynamic subclass of the pipeline's own class, so that setting the class back is the undo. As
components, the further denoisers are covered by ``to``, offloading, saving and the end-of-call reset.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..errors import RoutingError
from ..types import Keywords, Output, Pipeline
from .stand_in import stand_in

# These step copies of their scheduler, one for each frame block, so that nothing shows at which step a call stands.
_UNROUTABLE = {
    "SkyReelsV2DiffusionForcingPipeline",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
}

RunGeneration = Callable[[Callable[..., Any], Keywords], Any]


def denoiser_slot(pipe: Pipeline) -> str:
    """``"transformer"`` or ``"unet"``: the component of a diffusers pipeline that is its denoiser.

    Raises:
        RoutingError: the object is no diffusers pipeline, has no denoiser, or cannot be routed rightly.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    name = type(pipe).__name__
    if not isinstance(pipe, DiffusionPipeline):
        raise RoutingError(f"expected a diffusers pipeline, found {name}. Pass what from_pretrained() returns.")
    if name in _UNROUTABLE:
        raise RoutingError(
            f"{name} steps copies of its scheduler, so the step of a denoiser call cannot be known and the small "
            "denoiser would silently never run. Use SkyReelsV2Pipeline instead."
        )
    for slot in ("transformer", "unet"):
        denoiser = getattr(pipe, slot, None)
        if isinstance(denoiser, nn.Module):
            refuse_compile_wrapper(denoiser, f"pipe.{slot}")
            return slot
    raise RoutingError(f"{name} has no denoiser: neither its `transformer` nor its `unet` is a loaded module.")


def refuse_compile_wrapper(denoiser: nn.Module, name: str) -> None:
    """``torch.compile(module)`` returns a wrapper of another class, on which no cache context can be entered."""
    from diffusers.utils.torch_utils import is_compiled_module

    if is_compiled_module(denoiser):
        raise RoutingError(
            f"{name} is wrapped by torch.compile(...), which hides the denoiser's cache contexts. Compile it in place "
            "instead: denoiser.compile() or denoiser.compile_repeated_blocks()."
        )


def called_denoisers(pipe: Pipeline, slot: str) -> tuple[nn.Module, ...]:
    """The denoisers that the pipeline itself calls: one, or both experts of a Wan 2.2 pipeline."""
    hosts = [getattr(pipe, slot)]
    second = getattr(pipe, f"{slot}_2", None)
    if pipe.config.get("boundary_ratio") is not None and isinstance(second, nn.Module):
        hosts.append(second)
    return tuple(hosts)


class PipelineDenoisers(NamedTuple):
    """Denoisers of a pipeline: the slot of its (first) one, and all that it calls itself."""

    slot: str
    called: tuple[nn.Module, ...]


def denoisers_of(pipe: Pipeline) -> PipelineDenoisers:
    """The denoisers that a pipeline calls. Raises ``RoutingError`` as :func:`denoiser_slot` does."""
    slot = denoiser_slot(pipe)
    return PipelineDenoisers(slot, called_denoisers(pipe, slot))


class EnabledPipeline:
    """A pipeline with further denoisers as components, whose calls run through ``run_generation``."""

    def __init__(
        self, pipe: Pipeline, denoisers: PipelineDenoisers, further: Sequence[nn.Module], run_generation: RunGeneration
    ) -> None:
        self._pipe = pipe
        self._slot = denoisers.slot
        self._further = tuple(further)
        self._run_generation = run_generation
        self._base = type(pipe)
        self._added: dict[str, nn.Module] = {}
        self._modules = (*denoisers.called, *self._further)
        self._found = {id(module): set(module.__dict__) for module in self._modules}

    def attach(self) -> None:
        pipe = self._pipe
        present = [c for c in pipe.components.values() if isinstance(c, nn.Module)]
        missing = [m for m in self._further if not any(m is p for p in present)]
        names = self._free_slots(len(missing))
        pipe.__class__ = _enabled_class(self._base, self._slot, names, self._run_generation)
        self._had_slot = {name: name in pipe.__dict__ for name in names}
        self._config = dict(pipe.config)
        self._added = dict(zip(names, missing, strict=True))
        if self._added:
            pipe.register_modules(**self._added)
            if getattr(pipe, "_all_hooks", None):  # model offloading was on: the newcomers take part
                pipe.enable_model_cpu_offload(device=pipe._offload_device)
        self._slots = {n: c for n, c in pipe.components.items() if any(c is m for m in self._further)}

    def replaced_slots(self) -> list[str]:
        """Names of the components that were further denoisers and that somebody has replaced since."""
        return [name for name, module in self._slots.items() if getattr(self._pipe, name, None) is not module]

    def detach(self) -> None:
        pipe = self._pipe
        offloaded = bool(self._added and getattr(pipe, "_all_hooks", None))
        if offloaded:
            pipe.remove_all_hooks()
        self._drop_added_slots()
        pipe.__class__ = self._base
        if offloaded:
            pipe.enable_model_cpu_offload(device=pipe._offload_device)
        for module in self._modules:
            _drop_traces(module, self._found[id(module)])

    def _drop_added_slots(self) -> None:
        """Take the added components out again; what the user changed meanwhile (another scheduler, say) stays."""
        pipe = self._pipe
        config = dict(pipe.config)
        for name, module in self._added.items():
            is_replaced = pipe.__dict__.get(name) is not module
            if is_replaced and self._had_slot[name]:
                continue
            if self._had_slot[name]:
                object.__setattr__(pipe, name, None)
            elif not is_replaced:
                pipe.__dict__.pop(name, None)
            if name in self._config:
                config[name] = self._config[name]
            else:
                config.pop(name, None)
        if self._added:
            pipe._internal_dict = type(pipe.config)(config)

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

    def __init__(self: Any, *args: object, **kwargs: object) -> None:
        plain_init(self, *args, **kwargs)

    # diffusers reads a pipeline's components off the signature of its __init__.
    added = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in new]
    plain = list(signature.parameters.values())
    variadic = [p for p in plain if p.kind is inspect.Parameter.VAR_KEYWORD]
    __init__.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*(p for p in plain if p not in variadic), *added, *variadic]
    )
    call_signature = inspect.signature(base.__call__)
    variadic_names = [n for n, p in call_signature.parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD]

    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: object, **kwargs: object) -> Output:
        arguments = call_signature.bind(self, *args, **kwargs).arguments
        arguments.pop(next(iter(arguments)))  # self
        for name in variadic_names:
            arguments |= arguments.pop(name, {})
        return run_generation(functools.partial(base.__call__, self), arguments)

    def __new__(cls: type, *args: object, **kwargs: object) -> Any:
        return base(*args, **kwargs)  # type(pipe)(...) and type(pipe).from_pretrained(...) make plain pipelines

    def __reduce_ex__(self: Any, protocol: object) -> Any:
        raise RoutingError(
            f"{base.__name__} cannot be pickled or copied while FlowBlending is enabled on it. "
            "Call disable() first, or use save_pretrained()."
        )

    sequence = getattr(base, "model_cpu_offload_seq", None)
    if sequence:
        order = sequence.split("->")
        after = order.index(slot) + 1 if slot in order else len(order)
        order[after:after] = [n for n in names if n not in order]
        sequence = "->".join(order)
    return stand_in(
        base,
        {
            "__new__": __new__,
            "__init__": __init__,
            "__call__": __call__,
            "__reduce_ex__": __reduce_ex__,
            "_optional_components": [*base._optional_components, *new],  # type: ignore[attr-defined]
            "model_cpu_offload_seq": sequence,
            "_flowblend_enabled": True,
        },
    )


def is_enabled(pipe: Pipeline) -> bool:
    """Whether FlowBlending is enabled on this pipeline."""
    return getattr(type(pipe), "_flowblend_enabled", False)


def _drop_traces(module: nn.Module, found: set[str]) -> None:
    """Take away what diffusers and accelerate leave on a module whose cache was reset or that was offloaded."""
    added = module.__dict__.keys() - found
    if "_diffusers_hook" in added and not module.__dict__["_diffusers_hook"].hooks:
        del module.__dict__["_diffusers_hook"]
    forward = module.__dict__.get("forward") if "forward" in added else None
    if getattr(forward, "__func__", None) is type(module).forward:  # accelerate sets back what was no attribute
        del module.__dict__["forward"]
