"""Snapshot of a pipeline and its denoisers, to be compared with their later state."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from ..types import JsonObject, JsonView, Keywords, Pipeline


def snapshot(pipe: Pipeline, *further: nn.Module, addresses: bool = True) -> Keywords:
    """Classes, components, config, scheduler, hooks, attributes and every tensor of a pipeline, by their names.

    Args:
        pipe: a diffusers pipeline.
        further: denoisers that are (or were) blended into it.
        addresses: whether a tensor's place in memory counts; offloading moves tensors in every generation.
    """
    state: Keywords = {
        "class": (type(pipe), id(type(pipe))),  # a stand-in is equal to the class that it stands in for
        "class attributes": sorted(vars(type(pipe))),
        "call": type(pipe).__call__,
        "attributes": sorted(vars(pipe)),
        "config": dict(pipe.config),
        "scheduler": (id(pipe.scheduler), type(pipe.scheduler), dict(pipe.scheduler.config)),
    }
    for name, component in pipe.components.items():
        state[f"component {name}"] = id(component)
    for root, module in _modules(pipe, *further).items():
        state[f"{root}: class attributes"] = sorted(vars(type(module)))
        for name, submodule in module.named_modules():
            state |= {f"{root}.{name}: {what}": value for what, value in _module_state(submodule).items()}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            state[f"{root}.{name}: tensor"] = _tensor_state(tensor)[0 if addresses else 2 :]
    return state


@dataclass(frozen=True)
class PipelineSnapshot:
    """Snapshot of a pipeline, taken before ``enable()`` and compared after ``disable()``.

    Tensors may have moved in memory; else it holds what :func:`snapshot` does, and the values of the pipeline's
    attributes and which forwards and hooks its modules have.
    """

    facts: JsonView
    further: tuple[nn.Module, ...] = ()

    @classmethod
    def of(cls, pipe: Pipeline, *further: nn.Module) -> PipelineSnapshot:
        """Snapshot of the pipeline as it is now, and of denoisers that will be blended into it."""
        facts: JsonObject = snapshot(pipe, *further, addresses=False)
        del facts["attributes"]  # each of them is a fact of its own here
        for name, value in vars(pipe).items():
            if isinstance(value, torch.Tensor):
                facts[f"attribute {name}"] = _tensor_state(value)[2:]
            else:
                is_plain = value is None or isinstance(value, (bool, int, float, str, dict))
                facts[f"attribute {name}"] = value if is_plain else id(value)
        for root, module in _modules(pipe, *further).items():
            for name, part in module.named_modules():
                facts[f"{root}.{name}: forward"] = id(part.__dict__.get("forward"))
                facts[f"{root}.{name}: hooks"] = tuple(part._forward_hooks), tuple(part._forward_pre_hooks)
        return cls(facts, further)

    def differences(self, pipe: Pipeline) -> list[str]:
        """Names of what differs from the snapshot in the pipeline; empty if nothing does."""
        now = PipelineSnapshot.of(pipe, *self.further).facts
        return [name for name in sorted(self.facts.keys() | now.keys()) if self.facts.get(name) != now.get(name)]


def _modules(pipe: Pipeline, *further: nn.Module) -> dict[str, nn.Module]:
    modules = {f"further[{number}]": module for number, module in enumerate(further)}
    return modules | {name: one for name, one in pipe.components.items() if isinstance(one, nn.Module)}


def _module_state(module: nn.Module) -> Keywords:
    registry = module.__dict__.get("_diffusers_hook")
    return {
        "class": (id(module), type(module), id(type(module))),
        "attributes": sorted(module.__dict__),
        "diffusers hooks": None if registry is None else {name: type(hook) for name, hook in registry.hooks.items()},
        "torch hooks": {name: len(hooks) for name, hooks in module.__dict__.items() if name.endswith("_hooks")},
        "training": module.training,
        "config": dict(module.config) if isinstance(module, ConfigMixin) else None,
    }


def _tensor_state(tensor: torch.Tensor) -> tuple[object, ...]:
    data = tensor.detach().cpu().contiguous().view(torch.uint8) if tensor.ndim else tensor.detach().cpu().reshape(1)
    digest = hashlib.sha256(data.numpy().tobytes()).hexdigest()
    return tensor.data_ptr(), id(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, digest
