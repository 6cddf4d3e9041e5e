"""Snapshot of a pipeline or denoiser, to be compared with its later state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..types import JsonObject, JsonView, Keywords, Pipeline


def describe_module(module: nn.Module, name: str) -> tuple[Keywords, dict[str, torch.Tensor]]:
    """Attributes, class and hooks of every module under ``module``, and a copy of its parameters and buffers."""
    facts: JsonObject = {}
    for path, part in module.named_modules(prefix=name):
        own = {k for k in vars(part) if k not in ("_parameters", "_buffers", "_modules")}
        facts[f"{path} attributes"] = own | {("forward", id(part.__dict__.get("forward")))}
        facts[f"{path} class"] = type(part).__qualname__, id(type(part))
        facts[f"{path} hooks"] = (tuple(part._forward_hooks), tuple(part._forward_pre_hooks))
    return facts, {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}


@dataclass(frozen=True)
class PipelineSnapshot:
    """Snapshot of a pipeline, taken before ``enable()`` and compared after ``disable()``."""

    facts: JsonView
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, pipe: Pipeline) -> PipelineSnapshot:
        facts: JsonObject = {"class": (type(pipe).__qualname__, id(type(pipe))), "config": dict(pipe.config)}
        for name, value in vars(pipe).items():
            if isinstance(value, torch.Tensor):
                continue
            is_plain = value is None or isinstance(value, (bool, int, float, str, dict))
            facts[f"attribute {name}"] = value if is_plain else id(value)
        tensors = {f"attribute {k}": v.clone() for k, v in vars(pipe).items() if isinstance(v, torch.Tensor)}
        for name, component in pipe.components.items():
            facts |= {f"{name} class": type(component), f"{name} identity": id(component)}
            if isinstance(component, nn.Module):
                of_module, of_state = describe_module(component, name)
                facts |= of_module
                tensors |= of_state
            elif hasattr(component, "config"):
                facts[f"{name} config"] = dict(component.config)
        return cls(facts, tensors)

    def differences(self, pipe: Pipeline) -> list[str]:
        """Differences of the pipeline from the snapshot, in words; empty if there are none."""
        return self.differences_to(PipelineSnapshot.of(pipe))

    def differences_to(self, now: PipelineSnapshot) -> list[str]:
        """The same, of a snapshot that was taken later."""
        found = [f for f in sorted(self.facts.keys() | now.facts.keys()) if self.facts.get(f) != now.facts.get(f)]
        for name in sorted(self.tensors.keys() | now.tensors.keys()):
            before, after = self.tensors.get(name), now.tensors.get(name)
            if before is None or after is None or not torch.equal(before, after):
                found.append(f"tensor {name}")
        return found


def snapshot_of_denoiser(denoiser: nn.Module) -> PipelineSnapshot:
    """Take a snapshot of a denoiser that belongs to no pipeline."""
    return PipelineSnapshot(*describe_module(denoiser, "small denoiser"))
