"""Everything that a pipeline is, as a value two of which can be compared."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn


def snapshot(pipe: Any, *further: nn.Module, addresses: bool = True) -> dict[str, Any]:
    """Classes, components, config, scheduler, hooks, attributes and every tensor of a pipeline, by their names.

    Args:
        pipe: a diffusers pipeline.
        further: denoisers that are (or were) blended into it.
        addresses: whether a tensor's place in memory counts; offloading moves tensors in every generation.
    """
    state: dict[str, Any] = {
        "class": (type(pipe), id(type(pipe))),  # a stand-in is equal to the class that it stands in for
        "class attributes": sorted(vars(type(pipe))),
        "call": type(pipe).__call__,
        "attributes": sorted(pipe.__dict__),
        "config": dict(pipe.config),
        "scheduler": (id(pipe.scheduler), type(pipe.scheduler), dict(pipe.scheduler.config)),
    }
    modules = {f"further[{i}]": m for i, m in enumerate(further)}
    for name, component in pipe.components.items():
        state[f"component {name}"] = id(component)
        if isinstance(component, nn.Module):
            modules[name] = component
    for root, module in modules.items():
        state[f"{root}: class attributes"] = sorted(vars(type(module)))
        for name, submodule in module.named_modules():
            state |= {f"{root}.{name}: {what}": value for what, value in _module_state(submodule).items()}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            state[f"{root}.{name}: tensor"] = _tensor_state(tensor)[0 if addresses else 2 :]
    return state


def _module_state(module: nn.Module) -> dict[str, Any]:
    registry = module.__dict__.get("_diffusers_hook")
    return {
        "class": (id(module), type(module), id(type(module))),
        "attributes": sorted(module.__dict__),
        "diffusers hooks": None if registry is None else {name: type(hook) for name, hook in registry.hooks.items()},
        "torch hooks": {name: len(hooks) for name, hooks in module.__dict__.items() if name.endswith("_hooks")},
        "training": module.training,
        "config": dict(module.config) if isinstance(module, ConfigMixin) else None,
    }


def _tensor_state(tensor: torch.Tensor) -> tuple[Any, ...]:
    data = tensor.detach().cpu().contiguous().view(torch.uint8) if tensor.ndim else tensor.detach().cpu().reshape(1)
    digest = hashlib.sha256(data.numpy().tobytes()).hexdigest()
    return tensor.data_ptr(), id(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, digest
