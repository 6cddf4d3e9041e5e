"""Stage schedules: which denoiser answers at which step.

Pure functions of position (step, number of steps, sigma), never of calls. The letters are names of denoisers:
``L`` the large one, ``S`` the small one, any further capital letter a denoiser the user adds.
Source of the named schedules: FlowBlending, arXiv 2512.24724.
"""

from __future__ import annotations

import enum
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .errors import ScheduleError

NAMED_SCHEDULES = ("LLL", "SSS", "LSS", "SLL", "SSL", "LSL")
DEFAULT_EARLY = 0.4
DEFAULT_LATE = 0.2
AUTO = "auto"
"""In the place of a schedule: the boundaries of a calibration, which is given beside it."""

_GRAMMAR = (
    'a name like "LSL" (with early= and late= fractions), runs like "L:20,S:20,L:10", '
    'or sigma bounds like "L>=0.9,S>=0.4,L"'
)


class Stage(str, enum.Enum):
    """A part of the trajectory, in the paper's words."""

    EARLY = "early"
    INTERMEDIATE = "intermediate"
    LATE = "late"


class Assignment(NamedTuple):
    """Denoiser and stage that a schedule assigns to one step."""

    denoiser: str
    stage: Stage


@dataclass(frozen=True)
class Run:
    """Consecutive steps answered by one denoiser.

    Exactly one of the extents is set, except in the last run of a schedule by sigma, which has none:
    ``fraction`` of the steps, ``num_steps``, or ``min_sigma`` (the run holds while sigma is at or above it).
    """

    denoiser: str
    stage: Stage
    fraction: float | None = None
    num_steps: int | None = None
    min_sigma: float | None = None


@dataclass(frozen=True)
class StageSchedule:
    """An ordered set of runs that covers a generation from its first step to its last.

    Build one with :meth:`named`, :meth:`parse` or :meth:`by_sigma`; resolve it with :meth:`assignments`.
    """

    text: str
    runs: tuple[Run, ...]

    @classmethod
    def named(cls, letters: str, early: float = DEFAULT_EARLY, late: float = DEFAULT_LATE) -> StageSchedule:
        """Three letters for the early, intermediate and late stage; ``early`` and ``late`` are fractions of the steps.

        Raises:
            ScheduleError: not three capital letters, a fraction outside 0..1, or fractions that overlap.
        """
        if not re.fullmatch(r"[A-Z]{3}", letters):
            raise ScheduleError(
                f"schedule {letters!r}: expected three denoiser letters, one for each stage, such as "
                f"{', '.join(NAMED_SCHEDULES)}. Or write {_GRAMMAR}."
            )
        for name, value in (("early", early), ("late", late)):
            if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
                raise ScheduleError(f"{name}={value!r}: expected a fraction of the steps, from 0 to 1.")
        if early + late > 1.0 + 1e-9:
            raise ScheduleError(
                f"early={early:g} and late={late:g} overlap: together they cover {early + late:g} of the steps. "
                "Lower one so that their sum is at most 1."
            )
        fractions = (early, max(0.0, 1.0 - early - late), late)
        runs = tuple(Run(a, s, fraction=f) for a, s, f in zip(letters, Stage, fractions, strict=True))
        return cls(letters, runs)

    @classmethod
    def parse(cls, text: str, early: float | None = None, late: float | None = None) -> StageSchedule:
        """Read a name, runs of steps, or sigma bounds.

        Args:
            text: ``"LSL"``, ``"L:20,S:20,L:10"`` or ``"L>=0.9,S>=0.4,L"``, in any case.
            early, late: fractions of the steps; only for a name (defaults .4 and .2, the paper's for WAN 2.1).

        Raises:
            ScheduleError: the text is none of these, or fractions are given with explicit runs.
        """
        compact = re.sub(r"[a-z](?![-0-9])", lambda letter: letter[0].upper(), "".join(text.split()))  # but 1e-3
        if compact == AUTO.upper():
            raise ScheduleError(
                f'schedule "{AUTO}" is that of a calibration: give calibration= (--calibration) too, a file that '
                "`flowblend calibrate boundaries` wrote."
            )
        if not re.search(r"[:,>]", compact):
            return cls.named(compact, DEFAULT_EARLY if early is None else early, DEFAULT_LATE if late is None else late)
        if early is not None or late is not None:
            raise ScheduleError(
                f"schedule {text!r} has explicit boundaries, so early= and late= have no meaning. Leave them out."
            )
        parts = compact.split(",")
        if all(re.fullmatch(r"[A-Z]:[0-9]+", part) for part in parts):
            counts = [(part[0], int(part[2:])) for part in parts]
            if any(count == 0 for _, count in counts):
                raise ScheduleError(f"schedule {text!r}: a run of 0 steps. Give every run at least one step.")
            stages = _stages(len(counts))
            runs = tuple(Run(a, s, num_steps=n) for (a, n), s in zip(counts, stages, strict=True))
            return cls(compact, runs)
        number = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?"
        if re.fullmatch(r"[A-Z]", parts[-1]) and all(re.fullmatch(rf"[A-Z]>={number}", p) for p in parts[:-1]):
            letters = "".join(part[0] for part in parts)
            return cls.by_sigma(letters, [float(part[3:]) for part in parts[:-1]])
        raise ScheduleError(f"schedule {text!r} cannot be read: expected {_GRAMMAR}.")

    @classmethod
    def by_sigma(cls, letters: str, boundary_sigmas: Sequence[float]) -> StageSchedule:
        """One denoiser letter more than ``boundary_sigmas``; each holds while sigma is at or above its boundary.

        With flow matching sigma runs from 1 (noise) to 0 (data), so ``by_sigma("LS", [0.875])`` is what diffusers'
        ``WanPipeline`` does for ``boundary_ratio=0.875``.
        """
        if not re.fullmatch(r"[A-Z]{2,}", letters) or len(boundary_sigmas) != len(letters) - 1:
            raise ScheduleError(
                f"sigma schedule {letters!r} with boundaries {list(boundary_sigmas)}: expected capital letters and "
                "one boundary between each two of them."
            )
        if not all(math.isfinite(b) for b in boundary_sigmas):
            raise ScheduleError(f"sigma boundaries {list(boundary_sigmas)}: expected finite numbers.")
        if any(a <= b for a, b in itertools.pairwise(boundary_sigmas)):
            raise ScheduleError(
                f"sigma boundaries {list(boundary_sigmas)} must fall: sampling goes from high sigma to low."
            )
        bounds = [*boundary_sigmas, None]
        stages = _stages(len(letters))
        runs = tuple(Run(a, s, min_sigma=b) for a, s, b in zip(letters, stages, bounds, strict=True))
        text = ",".join(r.denoiser if r.min_sigma is None else f"{r.denoiser}>={float(r.min_sigma)!r}" for r in runs)
        return cls(text, runs)

    @property
    def letters(self) -> frozenset[str]:
        """The denoisers this schedule can call (a run of fraction 0 calls none)."""
        return frozenset(run.denoiser for run in self.runs if run.fraction != 0.0)

    @property
    def needs_sigmas(self) -> bool:
        return any(run.min_sigma is not None for run in self.runs)

    def assignments(self, num_inference_steps: int, sigmas: Sequence[float] | None = None) -> tuple[Assignment, ...]:
        """The denoiser and stage of every step.

        Args:
            num_inference_steps: length of the sampler's list of timesteps (2N-1 for Heun).
            sigmas: at least that many noise levels, falling; needed by schedules by sigma only.

        Raises:
            ScheduleError: no steps, runs that do not add up to the steps, or sigmas missing.
        """
        if num_inference_steps < 1:
            raise ScheduleError(f"{num_inference_steps} steps: a generation needs at least one.")
        if self.needs_sigmas:
            return self._assignments_by_sigma(num_inference_steps, sigmas)
        counts = self._counts(num_inference_steps)
        return tuple(
            Assignment(run.denoiser, run.stage)
            for run, count in zip(self.runs, counts, strict=True)
            for _ in range(count)
        )

    def _counts(self, num_steps: int) -> list[int]:
        if self.runs[0].fraction is not None:
            early, _, late = (run.fraction or 0.0 for run in self.runs)
            early_end = math.floor(early * num_steps + 0.5)
            late_start = max(early_end, num_steps - math.floor(late * num_steps + 0.5))
            return [early_end, late_start - early_end, num_steps - late_start]
        counts = [run.num_steps or 0 for run in self.runs]
        if sum(counts) != num_steps:
            raise ScheduleError(
                f"schedule {self.text!r} covers {sum(counts)} steps, but this generation has {num_steps}. "
                "Make the runs add up to the number of steps, or use fractions: they move along."
            )
        return counts

    def _assignments_by_sigma(self, num_steps: int, sigmas: Sequence[float] | None) -> tuple[Assignment, ...]:
        if sigmas is None or len(sigmas) < num_steps:
            raise ScheduleError(
                f"schedule {self.text!r} goes by sigma, but the sampler gives no sigma for each of its {num_steps} "
                "steps. Use fractions or runs of steps instead."
            )
        chosen = []
        for sigma in sigmas[:num_steps]:
            run = next(r for r in self.runs if r.min_sigma is None or sigma >= r.min_sigma)
            chosen.append(Assignment(run.denoiser, run.stage))
        return tuple(chosen)

    def describe(self, num_inference_steps: int, sigmas: Sequence[float] | None = None) -> str:
        """The resolved schedule as people read it, steps counted from 1: ``"L 1-20, S 21-40, L 41-50"``."""
        pieces: list[tuple[str, int, int]] = []
        for index, (letter, _) in enumerate(self.assignments(num_inference_steps, sigmas), start=1):
            if pieces and pieces[-1][0] == letter:
                pieces[-1] = (letter, pieces[-1][1], index)
            else:
                pieces.append((letter, index, index))
        return ", ".join(f"{a} {i}" if i == j else f"{a} {i}-{j}" for a, i, j in pieces)


def _stages(num_runs: int) -> list[Stage]:
    """The first run is the early stage, the last the late one, all between the intermediate one."""
    if num_runs == 1:
        return [Stage.INTERMEDIATE]
    return [Stage.EARLY, *[Stage.INTERMEDIATE] * (num_runs - 2), Stage.LATE]
