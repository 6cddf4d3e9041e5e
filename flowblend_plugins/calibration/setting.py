"""Conditions of a calibration: two denoisers, a sampler, and a number of steps. For anything else it is void."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..types import JsonObject, JsonView, Scheduler

_PACKAGES = ("flowblend-plugins", "diffusers", "torch")
_NUM_SAMPLED_WEIGHTS = 64
_NUM_VALUES = 8
_COMPARABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class DenoiserIdentity:
    """Identity of a denoiser, wherever it was loaded from.

    Attributes:
        class_name: its class in diffusers.
        num_parameters: counted.
        dtype: of its weights.
        weights: digest of some values of each of up to 64 weights; ``None`` where they cannot be read (sequential
            offloading) or are stored in another way (quantisation).
    """

    class_name: str
    num_parameters: int
    dtype: str
    weights: str | None

    @classmethod
    def of(cls, denoiser: nn.Module) -> DenoiserIdentity:
        weights = dict(sorted(denoiser.named_parameters()))
        dtype = str(getattr(denoiser, "dtype", "unknown"))
        return cls(
            class_name=type(denoiser).__name__,
            num_parameters=sum(weight.numel() for weight in weights.values()),
            dtype=dtype.removeprefix("torch."),
            weights=_digest(weights),
        )

    def __str__(self) -> str:
        size = f"{self.num_parameters / 1e9:.1f} B" if self.num_parameters >= 1e9 else f"{self.num_parameters:,}"
        return f"{self.class_name} of {size} parameters" + (f" ({self.weights})" if self.weights else "")

    def is_same(self, other: DenoiserIdentity) -> bool:
        """Whether both are one denoiser; weights are compared where both are known in one dtype."""
        if (self.class_name, self.num_parameters) != (other.class_name, other.num_parameters):
            return False
        if None in (self.weights, other.weights) or self.dtype != other.dtype:
            return True
        return self.weights == other.weights


@dataclass(frozen=True, kw_only=True)
class SamplerIdentity:
    """The solver, and the shift of its noise schedule; ``None`` where it has none or the pipeline sets it."""

    class_name: str
    shift: float | None

    @classmethod
    def of(cls, scheduler: Scheduler) -> SamplerIdentity:
        config = scheduler.config
        shift = config.get("flow_shift", config.get("shift"))
        return cls(class_name=type(scheduler).__name__, shift=None if shift is None else float(shift))

    def __str__(self) -> str:
        return self.class_name + ("" if self.shift is None else f" with shift {self.shift:g}")


@dataclass(frozen=True, kw_only=True)
class CalibrationSetting:
    """Under which conditions something was measured.

    Attributes:
        pair: the pair's name, or where its denoisers came from; for people.
        denoisers: ``L`` and ``S``.
        sampler: the solver that ran, after adapters.
        num_timesteps: length of the sampler's list: the number of steps, except for solvers that evaluate twice a step.
        guidance_scale: of the call; ``None`` where it was left to the pipeline.
        adapters: the solver adapters that were stacked, as text.
        prompts: what was generated.
        seed: of the first prompt's noise; each further prompt has the next one.
        versions: of the packages that computed it.
    """

    pair: str
    denoisers: Mapping[str, DenoiserIdentity]
    sampler: SamplerIdentity
    num_timesteps: int
    guidance_scale: float | None
    adapters: tuple[str, ...]
    prompts: tuple[str, ...]
    seed: int
    versions: Mapping[str, str]

    def to_json(self) -> JsonObject:
        return dataclasses.asdict(self) | {"adapters": list(self.adapters), "prompts": list(self.prompts)}

    @classmethod
    def from_json(cls, entry: JsonView) -> CalibrationSetting:
        """Read the JSON of :meth:`to_json`. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        scale = entry["guidance_scale"]
        return cls(
            pair=str(entry["pair"]),
            denoisers={letter: DenoiserIdentity(**entry["denoisers"][letter]) for letter in ("L", "S")},
            sampler=SamplerIdentity(**entry["sampler"]),
            num_timesteps=int(entry["num_timesteps"]),
            guidance_scale=None if scale is None else float(scale),
            adapters=tuple(entry["adapters"]),
            prompts=tuple(entry["prompts"]),
            seed=int(entry["seed"]),
            versions=dict(entry["versions"]),
        )


def installed_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _digest(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Twelve hexadecimal digits; the same wherever the weights stand."""
    names: Sequence[str] = list(weights)
    stride = max(1, len(names) // _NUM_SAMPLED_WEIGHTS)
    digest = hashlib.sha256()
    for name in names[::stride]:
        weight = weights[name].detach()
        if weight.is_meta or weight.dtype not in _COMPARABLE_DTYPES:
            return None
        while weight.ndim > 1:
            weight = weight[0]
        values = weight.reshape(-1)[:_NUM_VALUES].float().cpu().contiguous()
        digest.update(name.encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:12]
