"""Memory of one module: its weights, and the peak of what a call allocates, from shapes alone.

The module is rebuilt from its config out of fake tensors, as for its FLOPs, and every storage that the call makes is
counted from the moment it is made until nothing refers to it. On a CPU that is what torch's allocator does, byte for
byte; a CUDA allocator rounds each up to 512 bytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..types import Args, Denoiser, JsonView, Keywords, Output
from .flops import CallInputs, fake_input

FLOAT8_BYTES = 1


class ModuleMemory(NamedTuple):
    """Memory of a module and of one call of it, in bytes.

    Attributes:
        weights: its parameters and buffers.
        float8_weights: the same, where diffusers' ``enable_layerwise_casting`` stores its layers in float8.
        peak: the most that one call has allocated at a time, beyond weights and inputs.
        num_parameters: counted.
        largest_layer: bytes of the largest layer's weights, which group offloading moves at a time.
    """

    weights: int
    float8_weights: int
    peak: int
    num_parameters: int
    largest_layer: int


def build_in(dtype: torch.dtype, make: Callable[[], Any]) -> Any:
    """A model as diffusers loads it in this dtype: what its class keeps in float32 is in float32.

    Args:
        dtype: of its weights.
        make: builds it; where, is the caller's to say.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        module = make()
    finally:
        torch.set_default_dtype(default)
    # transformers keeps its own list in float32 for float16 only, which has less range than bfloat16.
    is_diffusers = type(module).__module__.startswith("diffusers.")
    in_float32 = frozenset(module._keep_in_fp32_modules or ()) if is_diffusers else frozenset[str]()
    for name, weight in module.named_parameters():
        if not in_float32.isdisjoint(name.split(".")):
            weight.data = weight.data.float()
    return module.eval()


def denoiser_memory(denoiser_class: Any, config: JsonView, inputs: CallInputs, dtype: torch.dtype) -> ModuleMemory:
    """Memory of a denoiser of this class and config, and of one forward with these inputs."""

    def prepare(denoiser: Denoiser) -> Callable[[], object]:
        args = [fake_input(value, dtype) for value in inputs.args]
        kwargs = {key: fake_input(value, dtype) for key, value in inputs.kwargs.items()}
        return lambda: denoiser(*args, **kwargs)

    return module_memory(lambda: denoiser_class.from_config(config), prepare, dtype)


def module_memory(
    make: Callable[[], nn.Module],
    prepare: Callable[[Denoiser], Callable[[], object]],
    dtype: torch.dtype,
) -> ModuleMemory:
    """Memory of a module and of one call.

    Args:
        make: builds the module.
        prepare: given the module, makes the inputs and gives a function that makes the call.
        dtype: of the weights.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.no_grad(), FakeTensorMode():
        module = build_in(dtype, make)
        call = prepare(module)
        tensors = [*module.parameters(), *module.buffers()]
        with _LiveBytes() as live:
            call()
        cast = sum(one.numel() * (one.element_size() - FLOAT8_BYTES) for one in _cast_layerwise(module))
        weights = _num_bytes(tensors)
        return ModuleMemory(
            weights,
            weights - cast,
            live.peak,
            sum(one.numel() for one in module.parameters()),
            max(_num_bytes(one.parameters(recurse=False)) for one in module.modules()),
        )


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def _cast_layerwise(module: nn.Module) -> list[torch.Tensor]:
    """Weights that ``enable_layerwise_casting`` would store in another dtype, by diffusers' own rule."""
    import re

    from diffusers.hooks._common import _GO_LC_SUPPORTED_PYTORCH_LAYERS
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    skipped = (
        *DEFAULT_SKIP_MODULES_PATTERN,
        *(getattr(module, "_skip_layerwise_casting_patterns", None) or ()),
        *(getattr(module, "_keep_in_fp32_modules", None) or ()),
    )
    found: list[torch.Tensor] = []

    def walk(name: str, one: nn.Module) -> None:
        if any(re.search(pattern, name) for pattern in skipped):
            return
        if isinstance(one, _GO_LC_SUPPORTED_PYTORCH_LAYERS):
            found.extend(one.parameters())
            return
        for child_name, child in one.named_children():
            walk(f"{name}.{child_name}" if name else child_name, child)

    walk("", module)
    return found


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators make, until each is freed."""

    def __init__(self) -> None:
        super().__init__()
        self._now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Output], types: object, args: Args = (), kwargs: Keywords | None = None
    ) -> Output:
        from torch.utils._pytree import tree_iter

        kwargs = kwargs or {}
        before = {one.untyped_storage()._cdata for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)}
        result = func(*args, **kwargs)
        for one in tree_iter(result):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in before:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
