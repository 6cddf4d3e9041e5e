"""Numbers of a deterministic sampler: its noise levels, and the weight of each step in the result.

Euler's method, UniPC, DPM++, DEIS and DDIM are linear: the final sample is a multiple of the first noise plus a
weighted sum of the denoiser's outputs. The weights are read off the diffusers scheduler itself, by letting it step
through unit vectors, so that no solver's formula is written down a second time.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowblend_plugins import StackError
from flowblend_plugins.files.measurement import config_facts, denoiser_differences
from flowblend_plugins.types import JsonObject, JsonView, Scheduler

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """A sampler at one number of steps ``N``.

    Attributes:
        class_name: of the diffusers scheduler.
        config: its diffusers config without private entries.
        timesteps: ``[N]``, falling.
        alphas, sigmas: ``[N]``: a sample on the way is ``alpha`` times the clean one plus ``sigma`` times noise.
        weights: ``[N]``, of each step's denoiser output in the final sample.
    """

    class_name: str
    config: JsonView
    timesteps: Array
    alphas: Array
    sigmas: Array
    weights: Array

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @classmethod
    def of(cls, scheduler: Scheduler) -> Sampler:
        """Read off a diffusers scheduler whose timesteps are set; it is left as it was.

        Raises:
            StackError: it is not linear in the denoiser's outputs, draws noise, or scales its samples by more than 1.
        """
        name = type(scheduler).__name__
        weights, again = _weights(scheduler), _weights(scheduler, scale=2.0)
        if weights is None or again is None or not np.allclose(weights, again, rtol=1e-3, atol=1e-6):
            raise StackError(
                f"{name} cannot be planned for: its result is not a weighted sum of the denoiser's outputs. Use a "
                "deterministic sampler, such as UniPC, DPM++, Euler's or DDIM."
            )
        if (first_level := float(getattr(scheduler, "init_noise_sigma", 1.0))) > 1.001:
            raise StackError(
                f"{name} cannot be planned for: its samples grow with the noise (init_noise_sigma is "
                f"{first_level:g}). Use UniPC, DPM++ or DDIM."
            )
        timesteps = np.asarray([float(one) for one in scheduler.timesteps])
        if hasattr(scheduler, "alphas_cumprod") and not scheduler.config.get("use_flow_sigmas"):
            kept = scheduler.alphas_cumprod.double().numpy()[timesteps.round().astype(int)]
            alphas, sigmas = np.sqrt(kept), np.sqrt(1.0 - kept)
        else:
            sigmas = np.asarray([float(one) for one in scheduler.sigmas[: len(timesteps)]])
            alphas = 1.0 - sigmas
        return cls(
            class_name=name,
            config=config_facts(scheduler),
            timesteps=timesteps,
            alphas=alphas,
            sigmas=sigmas,
            weights=weights,
        )

    def differences(self, scheduler: Scheduler) -> list[str]:
        """Differences of this sampler from a diffusers scheduler, in words."""
        return denoiser_differences(self.class_name, self.config, scheduler)

    def to_json(self) -> JsonObject:
        """The JSON object that :meth:`from_json` reads."""
        numbers = {name: getattr(self, name).tolist() for name in ("timesteps", "alphas", "sigmas", "weights")}
        return {"class": self.class_name, "config": dict(self.config), **numbers}

    @classmethod
    def from_json(cls, data: JsonView) -> Sampler:
        """Raises ``KeyError``, ``TypeError`` or ``ValueError`` where the data are none of a sampler."""
        numbers = {name: np.asarray(data[name], np.float64) for name in ("timesteps", "alphas", "sigmas", "weights")}
        if len({one.shape for one in numbers.values()}) != 1 or numbers["timesteps"].ndim != 1:
            raise ValueError("the sampler's timesteps, alphas, sigmas and weights differ in number")
        return cls(class_name=str(data["class"]), config=dict(data["config"]), **numbers)


def _weights(scheduler: Scheduler, scale: float = 1.0) -> Array | None:
    """Weight of each denoiser output in the final sample ``[N]``; ``None`` where the scheduler takes none such."""
    import torch

    own = copy.deepcopy(scheduler)
    number = len(own.timesteps)
    sample = torch.zeros(1, number + 1, dtype=torch.float64)
    try:
        for index, timestep in enumerate(own.timesteps):
            output = torch.zeros_like(sample)
            output[0, index + 1] = scale
            sample = own.step(output, timestep, sample, return_dict=False)[0].double()
    except (TypeError, RuntimeError, ValueError, IndexError):
        return None
    return (sample[0, 1:] / scale).numpy()
