"""Enabled pipelines: further denoisers go along, and calls become generations.

Both are done with a dynamic subclass of the pipeline's own class, so that setting the class back is the undo. The
further denoisers are covered by ``to``, offloading, saving and the end-of-call reset. They are no components:
``pipe.components`` and ``pipe.config`` are the plain pipeline's, for other pipelines to be made of.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast
from weakref import WeakKeyDictionary

from torch import nn

from ..errors import RoutingError
from ..types import Denoiser, Keywords, Output, Pipeline
from .stand_in import stand_in

# These step copies of their scheduler, one for each frame block, so that nothing shows at which step a call stands.
_UNROUTABLE = {
    "SkyReelsV2DiffusionForcingPipeline",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
}

# What diffusers does to each component of a pipeline, it does to the further denoisers too.
_GO_OVER_COMPONENTS = (
    "to",
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "enable_group_offload",
    "remove_all_hooks",
    "reset_device_map",
    "maybe_free_model_hooks",
    "set_use_memory_efficient_attention_xformers",
    "set_attention_slice",
)

# The attributes that a denoiser had before the blends that it is in now, and how many those are.
_FOUND: WeakKeyDictionary[nn.Module, tuple[set[str], int]] = WeakKeyDictionary()
_LOCK = threading.Lock()

RunGeneration = Callable[[Callable[..., Output], Keywords], Output]


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
    """A pipeline that takes further denoisers along, and whose calls run through ``run_generation``."""

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

    def attach(self) -> None:
        pipe = self._pipe
        with _LOCK:
            for module in self._modules:
                found, num_blends = _FOUND.get(module, (set(module.__dict__), 0))
                _FOUND[module] = found, num_blends + 1
        present = [c for c in pipe.components.values() if isinstance(c, nn.Module)]
        missing = [m for m in self._further if not any(m is p for p in present)]
        names = self._free_slots(len(missing))
        self._had_slot = {name: name in pipe.__dict__ for name in names}
        self._added = dict(zip(names, missing, strict=True))
        pipe.__class__ = _enabled_class(self._base, self._slot, self._added, self._run_generation)
        pipe.__dict__.update(self._added)
        if self._added and getattr(pipe, "_all_hooks", None):  # model offloading was on: the newcomers take part
            pipe.enable_model_cpu_offload(device=pipe._offload_device)
        self._slots = {n: c for n, c in vars(pipe).items() if any(c is m for m in self._further)}

    def replaced_slots(self) -> list[str]:
        """Names of the attributes that were further denoisers and that somebody has replaced since."""
        return [name for name, module in self._slots.items() if getattr(self._pipe, name, None) is not module]

    def detach(self) -> None:
        pipe = self._pipe
        offloaded = bool(self._added and getattr(pipe, "_all_hooks", None))
        if offloaded:
            pipe.remove_all_hooks()
        for name, module in self._added.items():
            if pipe.__dict__.get(name) is not module:  # the user has put something else there
                continue
            if self._had_slot[name]:
                pipe.__dict__[name] = None
            else:
                pipe.__dict__.pop(name, None)
        pipe.__class__ = self._base
        if offloaded:
            pipe.enable_model_cpu_offload(device=pipe._offload_device)
        with _LOCK:
            for module in self._modules:
                found, num_blends = _FOUND.pop(module)
                if num_blends > 1:
                    _FOUND[module] = found, num_blends - 1
                else:
                    _drop_traces(module, found)

    def _free_slots(self, count: int) -> list[str]:
        names: list[str] = []
        number = 2
        while len(names) < count:
            name = f"{self._slot}_{number}"
            if getattr(self._pipe, name, None) is None:
                names.append(name)
            number += 1
        return names


def _enabled_class(base: Any, slot: str, added: dict[str, nn.Module], run_generation: RunGeneration) -> type:
    def __new__(cls: type, *args: object, **kwargs: object) -> object:
        return base(*args, **kwargs)  # type(pipe)(...) and type(pipe).from_pretrained(...) make plain pipelines

    def __reduce_ex__(self: Pipeline, protocol: object) -> NoReturn:
        raise RoutingError(
            f"{base.__name__} cannot be pickled or copied while FlowBlending is enabled on it. "
            "Call disable() first, or use save_pretrained()."
        )

    namespace: Keywords = {
        "__new__": __new__,
        "__call__": _routed_call(base, run_generation),
        "__reduce_ex__": __reduce_ex__,
        "_flowblend_enabled": True,
    }
    return stand_in(base, namespace | _taking_along(base, slot, added))


def _taking_along(base: Any, slot: str, added: dict[str, nn.Module]) -> Keywords:
    """Members of a pipeline class that do to the added denoisers, by attribute, what they do to components."""
    is_seen = False  # whether the added denoisers are among the components

    @contextlib.contextmanager
    def seen(value: bool) -> Iterator[None]:
        nonlocal is_seen
        was, is_seen = is_seen, value
        try:
            yield
        finally:
            is_seen = was

    def going_over(method: Callable[..., Output]) -> Callable[..., Output]:
        @functools.wraps(method)
        def call(self: Pipeline, *args: object, **kwargs: object) -> Output:
            with seen(True):
                return method(self, *args, **kwargs)

        return call

    def components(self: Pipeline) -> Keywords:
        further = added if is_seen else {}
        with seen(False):
            plain = base.components.fget(self)
        return {name: None if name in added else one for name, one in plain.items()} | further

    def _get_signature_keys(cls: type, obj: object) -> tuple[set[str], set[str]]:
        expected, optional = base._get_signature_keys(obj)
        return {*expected, *(added if is_seen else ())}, optional

    def save_pretrained(self: Pipeline, save_directory: str | Path, *args: object, **kwargs: object) -> None:
        """Save the plain pipeline, and the added denoisers beside it, where ``model_index.json`` does not list them."""
        base.save_pretrained(self, save_directory, *args, **kwargs)
        passed = {name: kwargs[name] for name in ("safe_serialization", "variant", "max_shard_size") if name in kwargs}
        for name, denoiser in added.items():
            cast(Denoiser, denoiser).save_pretrained(Path(save_directory) / name, **passed)

    sequence = getattr(base, "model_cpu_offload_seq", None)
    if sequence:
        order = sequence.split("->")
        after = order.index(slot) + 1 if slot in order else len(order)
        order[after:after] = [name for name in added if name not in order]
        sequence = "->".join(order)
    return {
        **{name: going_over(getattr(base, name)) for name in _GO_OVER_COMPONENTS if hasattr(base, name)},
        "components": property(components),
        "_get_signature_keys": classmethod(_get_signature_keys),
        "save_pretrained": save_pretrained,
        "model_cpu_offload_seq": sequence,
    }


def _routed_call(base: Any, run_generation: RunGeneration) -> Callable[..., Output]:
    call_signature = inspect.signature(base.__call__)
    variadic_names = [n for n, p in call_signature.parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD]

    @functools.wraps(base.__call__)
    def __call__(self: Pipeline, *args: object, **kwargs: object) -> Output:
        arguments = call_signature.bind(self, *args, **kwargs).arguments
        arguments.pop(next(iter(arguments)))  # self
        for name in variadic_names:
            arguments |= arguments.pop(name, {})
        return run_generation(functools.partial(base.__call__, self), arguments)

    return __call__


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
