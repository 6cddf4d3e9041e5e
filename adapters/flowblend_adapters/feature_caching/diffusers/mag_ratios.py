"""Magnitude ratios of a pair's denoisers, as MagCache needs them: a JSON file with those of each.

A ratio is the mean over tokens of ``|residual of the block stack| / |residual one step before|``. It depends on the
weights, the number of steps and the noise schedule, so each denoiser of a pair has its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowblend_plugins import StackError
from flowblend_plugins.files.measurement import MeasurementFile, denoiser_differences
from flowblend_plugins.types import Denoiser, JsonObject, JsonView


@dataclass(frozen=True, kw_only=True)
class DenoiserRatios:
    """One denoiser's ratios, and which denoiser that is.

    Attributes:
        class_name: of the denoiser.
        config: its diffusers config without private entries.
        ratios: one for each step, the mean over guidance branches and generations; the first is 1.
    """

    class_name: str
    config: JsonView
    ratios: tuple[float, ...]

    def differences(self, denoiser: Denoiser) -> list[str]:
        """Differences of the calibrated denoiser from this one, in words."""
        return denoiser_differences(self.class_name, self.config, denoiser)


@dataclass(frozen=True, kw_only=True)
class MagRatios:
    """Ratios of every denoiser of a pair, measured over the same number of steps.

    Attributes:
        num_inference_steps: length of the sampler's list of timesteps.
        num_generations: how many generations each ratio is the mean over.
        denoisers: letter to ratios.
    """

    num_inference_steps: int
    num_generations: int
    denoisers: Mapping[str, DenoiserRatios]

    def to_json(self) -> JsonObject:
        """The JSON object that :meth:`read` reads."""
        return _FILE.envelope(
            {
                "num_inference_steps": self.num_inference_steps,
                "num_generations": self.num_generations,
                "denoisers": {
                    letter: {"class": entry.class_name, "config": entry.config, "ratios": entry.ratios}
                    for letter, entry in self.denoisers.items()
                },
            }
        )

    @classmethod
    def read(cls, path: str | Path) -> MagRatios:
        """Read the ratios from a JSON file, or by name (``"reference"``) from this package.

        Raises:
            AdapterError: it is not there, or holds no ratios of MagCache.
        """
        return _FILE.read(path, "ratios")

    @classmethod
    def from_json(cls, data: JsonView) -> MagRatios:
        num_steps = int(data["num_inference_steps"])
        entries = {}
        for letter, entry in data["denoisers"].items():
            ratios = tuple(float(ratio) for ratio in entry["ratios"])
            if len(ratios) != num_steps or not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
                raise ValueError(f"denoiser {letter} has not {num_steps} ratios above 0")
            entries[letter] = DenoiserRatios(class_name=entry["class"], config=entry["config"], ratios=ratios)
        return cls(num_inference_steps=num_steps, num_generations=int(data["num_generations"]), denoisers=entries)

    def of(self, letter: str, denoiser: Denoiser) -> tuple[float, ...]:
        """The ratios of one denoiser.

        Raises:
            StackError: it was not calibrated.
        """
        named = [self.denoisers[letter]] if letter in self.denoisers else []
        entries = [*named, *(entry for key, entry in self.denoisers.items() if key != letter)]
        for entry in entries:
            if not entry.differences(denoiser):
                return entry.ratios
        told = "; ".join(entries[0].differences(denoiser)[:4]) if entries else "there is none"
        raise StackError(
            f"'mag_cache' on denoiser {letter}: the ratios are of another denoiser ({told}). Run "
            "`flowblend calibrate mag-cache` on this pair, or leave this denoiser out with denoisers=...."
        )


_FILE = MeasurementFile(
    kind="mag_cache",
    holds="ratios of MagCache",
    command="mag-cache",
    parse=MagRatios.from_json,
    built_in=Path(__file__).parent / "measured_ratios",
)
