"""Stage boundaries of one pair, as ``schedule="auto"`` takes them, and refusing them for anything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..errors import ScheduleError
from ..files.measurement import MeasurementFile
from ..schedule import StageSchedule
from ..types import JsonObject, JsonView, Scheduler
from .setting import CalibrationSetting, DenoiserIdentity, SamplerIdentity


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One schedule that was tried: steps of its two large stages, and the means over the prompts."""

    early_steps: int
    late_steps: int
    similarity: float
    artefact: float


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """Cost of a calibration for each prompt; replayed calls cost nothing, decoding and judging are not counted.

    Attributes:
        num_large_forwards, num_small_forwards: denoiser calls that were made (both guidance branches in one batch
            are one).
        large_generations: their FLOPs, in those of one large-only generation.
    """

    num_large_forwards: float
    num_small_forwards: float
    large_generations: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Boundaries at which the stages of one pair meet.

    Attributes:
        setting: what it holds for: pair, solver, number of steps.
        early_steps, late_steps: lengths of the large denoiser's two stages.
        method: ``"search"``, ``"grid"`` or ``"divergence"``.
        threshold: similarity to large-only that the early stage had to keep; ``None`` where none was measured.
        judged_by: name of the similarity; ``None`` likewise.
        artefact: name of the artefact metric; ``None`` likewise.
        late_is_limited: detail was still improving where the search's budget ended.
        cost: what it took.
        trials: what was measured, in the order it was.
    """

    setting: CalibrationSetting
    early_steps: int
    late_steps: int
    method: str
    threshold: float | None
    judged_by: str | None
    artefact: str | None
    late_is_limited: bool
    cost: SearchCost
    trials: tuple[TrialResult, ...] = ()

    @property
    def schedule(self) -> StageSchedule:
        """Large, small, large at these boundaries."""
        num = self.setting.num_timesteps
        return StageSchedule.named("LSL", self.early_steps / num, self.late_steps / num)

    def refuse_other_denoisers(self, denoisers: Mapping[str, nn.Module]) -> None:
        """Raise ``ScheduleError`` where ``L`` or ``S`` is not the one it was made with, naming both."""
        for letter, name in (("L", "large"), ("S", "small")):
            calibrated = self.setting.denoisers[letter]
            if letter in denoisers and not calibrated.is_same(found := DenoiserIdentity.of(denoisers[letter])):
                raise ScheduleError(
                    f"this calibration is of pair {self.setting.pair!r}, whose {name} denoiser is a {calibrated}, but "
                    f"here it is a {found}. {_AGAIN}"
                )

    def refuse_other_sampler(self, scheduler: Scheduler) -> None:
        """Raise ``ScheduleError`` where the solver or the shift of its noise schedule is another, naming both."""
        calibrated, found = self.setting.sampler, SamplerIdentity.of(scheduler)
        if calibrated != found:
            raise ScheduleError(f"this calibration is of the solver {calibrated}, but here it is {found}. {_AGAIN}")

    def refuse_other_steps(self, num_timesteps: int) -> None:
        """Raise ``ScheduleError`` where the sampler's list has another length, naming both."""
        if num_timesteps != self.setting.num_timesteps:
            raise ScheduleError(
                f"this calibration is of {self.setting.num_timesteps} steps, but here there are {num_timesteps}. "
                f"{_AGAIN}"
            )

    def to_json(self) -> JsonObject:
        entry = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _FILE.envelope(
            entry
            | {
                "setting": self.setting.to_json(),
                "cost": dataclasses.asdict(self.cost),
                "trials": [dataclasses.asdict(trial) for trial in self.trials],
            }
        )

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read the file that ``flowblend calibrate boundaries`` wrote.

        Raises:
            ScheduleError: it is not there, is something else, or its stages do not fit its steps.
        """
        return _FILE.read(path)

    @classmethod
    def from_json(cls, entry: JsonView) -> Calibration:
        """Read the content of such a file. Raises ``ValueError``, ``KeyError`` or ``TypeError`` where it is damaged."""
        found = cls(
            **{
                **entry,
                "setting": CalibrationSetting.from_json(entry["setting"]),
                "cost": SearchCost(**entry["cost"]),
                "trials": tuple(TrialResult(**trial) for trial in entry["trials"]),
            }
        )
        lengths = (found.early_steps, found.late_steps, found.setting.num_timesteps - sum(found.stages))
        if not all(isinstance(length, int) and length >= 0 for length in lengths) or found.setting.num_timesteps < 1:
            raise ValueError(
                f"its stages of {found.early_steps} and {found.late_steps} steps do not fit into "
                f"{found.setting.num_timesteps}"
            )
        return found

    @property
    def stages(self) -> tuple[int, int]:
        """Steps of the early and of the late stage."""
        return self.early_steps, self.late_steps


_AGAIN = "Calibrate for what you run, with `flowblend calibrate boundaries`."
_FILE = MeasurementFile(
    kind="stage_boundaries",
    holds="calibration",
    command="boundaries",
    parse=Calibration.from_json,
    error=ScheduleError,
)
