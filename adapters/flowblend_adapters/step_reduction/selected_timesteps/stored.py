"""Noise levels selected for one pair, as ``flowblend calibrate timesteps`` writes them: a JSON file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowblend_plugins.files.measurement import MeasurementFile, denoiser_differences
from flowblend_plugins.types import Denoiser, JsonObject, JsonView


@dataclass(frozen=True, kw_only=True)
class SelectedTimesteps:
    """Selections for several numbers of steps, and what they were made on.

    Attributes:
        class_name: of the large denoiser.
        config: its diffusers config without private entries.
        num_dense_steps: of the runs that were selected from.
        num_generations: how many of these.
        guidance_scale: of these; the velocity that was selected by is the guided one.
        selections: number of steps to noise levels, falling, without the final 0.
    """

    class_name: str
    config: JsonView
    num_dense_steps: int
    num_generations: int
    guidance_scale: float | None
    selections: Mapping[int, tuple[float, ...]]

    def to_json(self) -> JsonObject:
        """The JSON object that :meth:`read` reads."""
        return _FILE.envelope(
            {
                "denoiser": {"class": self.class_name, "config": dict(self.config)},
                "num_dense_steps": self.num_dense_steps,
                "num_generations": self.num_generations,
                "guidance_scale": self.guidance_scale,
                "selections": {str(count): list(sigmas) for count, sigmas in self.selections.items()},
            }
        )

    @classmethod
    def read(cls, path: str | Path) -> SelectedTimesteps:
        """Read the selections from a JSON file, or by name (``"reference"``) from this package.

        Raises:
            AdapterError: it is not there, or holds no selections.
        """
        return _FILE.read(path, "timesteps")

    @classmethod
    def from_json(cls, data: JsonView) -> SelectedTimesteps:
        selections = {int(count): _read_sigmas(count, sigmas) for count, sigmas in data["selections"].items()}
        scale = data["guidance_scale"]
        return cls(
            class_name=str(data["denoiser"]["class"]),
            config=dict(data["denoiser"]["config"]),
            num_dense_steps=int(data["num_dense_steps"]),
            num_generations=int(data["num_generations"]),
            guidance_scale=None if scale is None else float(scale),
            selections=selections,
        )

    def sigmas(self, num_inference_steps: int) -> tuple[float, ...]:
        """The selection of that many steps.

        Raises:
            ValueError: there is none.
        """
        if num_inference_steps not in self.selections:
            have = ", ".join(map(str, sorted(self.selections))) or "none"
            raise ValueError(
                f"num_inference_steps={num_inference_steps} was not selected; the file has selections of {have} steps, "
                f"and `flowblend calibrate timesteps --steps {num_inference_steps}` makes this one"
            )
        return self.selections[num_inference_steps]

    def differences(self, denoiser: Denoiser | None) -> list[str]:
        """Differences of the denoiser they were selected on from this one, in words."""
        return denoiser_differences(self.class_name, self.config, denoiser)


_FILE = MeasurementFile(
    kind="timesteps",
    holds="selected timesteps",
    command="timesteps",
    parse=SelectedTimesteps.from_json,
    built_in=Path(__file__).parent / "selected",
)


def _read_sigmas(count: str, values: Iterable[float]) -> tuple[float, ...]:
    sigmas = tuple(float(value) for value in values)
    falling = all(a > b for a, b in itertools.pairwise(sigmas))
    if len(sigmas) != int(count) or not falling or not 0.0 < sigmas[-1] <= sigmas[0] <= 1.0:
        raise ValueError(f"the selection of {count} steps has not {count} numbers that fall from at most 1 to above 0")
    return sigmas
