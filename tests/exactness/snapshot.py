"""Everything that a pipeline is, as a value two of which can be compared."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn


def snapshot(pipe: Any, *further: nn.Module) -> dict[str, Any]:
    """Classes, components, config, scheduler, hooks, attributes and every tensor of a pipeline.

    Args:
        pipe: a diffusers pipeline.
        further: denoisers that are (or were) blended into it.
    """
    modules = {n: c for n, c in pipe.components.items() if isinstance(c, nn.Module)}
    modules |= {f"further {i}": m for i, m in enumerate(further)}
    return {
        "class": type(pipe),
        "class attributes": dict(vars(type(pipe))),
        "attributes": sorted(pipe.__dict__),
        "components": {name: id(component) for name, component in pipe.components.items()},
        "config": dict(pipe.config),
        "scheduler": (id(pipe.scheduler), type(pipe.scheduler), dict(pipe.scheduler.config)),
        "modules": {name: _module_state(module) for name, module in modules.items()},
    }


def _module_state(root: nn.Module) -> dict[str, Any]:
    return {
        "root": (id(root), type(root), dict(vars(type(root)))),
        "submodules": {name: _submodule_state(module) for name, module in root.named_modules()},
        "tensors": {n: _tensor_state(t) for n, t in (*root.named_parameters(), *root.named_buffers())},
        "config": dict(root.config) if hasattr(root, "config") else None,
    }


def _submodule_state(module: nn.Module) -> tuple[Any, ...]:
    registry = module.__dict__.get("_diffusers_hook")
    hooks = None if registry is None else {name: type(hook) for name, hook in registry.hooks.items()}
    torch_hooks = [len(v) for k, v in sorted(module.__dict__.items()) if k.endswith("_hooks")]
    return id(module), type(module), sorted(module.__dict__), hooks, torch_hooks, module.training


def _tensor_state(tensor: torch.Tensor) -> tuple[Any, ...]:
    data = tensor.detach().cpu().contiguous().view(torch.uint8) if tensor.ndim else tensor.detach().cpu().reshape(1)
    digest = hashlib.sha256(data.numpy().tobytes()).hexdigest()
    return id(tensor), tensor.data_ptr(), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, digest
