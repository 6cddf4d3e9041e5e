"""Columns of the table: settings across, stage schedules down, and the paper's published FLOPs for the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from flowblend_adapters.distilled_samplers.own_levels import mix_levels
from flowblend_compat_matrix.plugin import REFERENCE
from flowblend_compat_matrix.results.cells import CellSpec
from flowblend_plugins.schedule import DEFAULT_EARLY, DEFAULT_LATE, StageSchedule
from flowblend_plugins.types import Scheduler

CONTROL = "LLL"
"""The row that every other one of its column is compared with."""


@dataclass(frozen=True)
class Column:
    """One setting of the sampler, under every schedule.

    Attributes:
        name: as the table says it.
        stack: the adapters that make it.
        control: the adapters of its large-only control, where the large denoiser alone is sampled otherwise.
        published: the paper's total TFLOPs by schedule, where it gives them.
        published_setting: what these are of.
        small_letter: what the paper calls the small denoiser of this setting: S, or D where it is distilled.
    """

    name: str
    stack: tuple[str, ...]
    control: tuple[str, ...] | None = None
    published: Mapping[str, int] = field(default_factory=dict)
    published_setting: str = ""
    small_letter: str = "S"

    def spec(self, schedule: str) -> CellSpec:
        """The cell of one row, at the paper's boundaries for WAN 2.1."""
        stack = self.control if schedule == CONTROL and self.control is not None else self.stack
        return CellSpec(StageSchedule.named(schedule, DEFAULT_EARLY, DEFAULT_LATE), stack)


@dataclass(frozen=True)
class OwnLevelsColumn(Column):
    """A distilled small denoiser between undistilled large steps, each at its own noise levels, with its own guidance.

    So the paper's LTX runs are counted: 20 of 40 large steps and 4 of 8 distilled ones. Small-only is the distilled
    sampler alone.
    """

    def spec(self, schedule: str) -> CellSpec:
        named = super().spec(schedule)
        if schedule == CONTROL:
            return named
        if named.schedule.letters == {"S"}:
            return CellSpec(named.schedule, ("distilled(num_inference_steps=8)",))
        dense = _large_levels(20)
        letters = [one.denoiser for one in named.schedule.assignments(len(dense))]
        few = json.loads((Path(REFERENCE.distilled["small-8"]) / "distilled.json").read_text())["sigmas"]
        mixed = mix_levels(dense, letters, few)
        assert mixed is not None, "every stage of the small denoiser holds some of its eight levels"
        levels = ", ".join(f"{level:.6g}" for level in mixed.sigmas)
        return CellSpec(StageSchedule.parse(mixed.schedule), (f"distilled_small(sigmas=({levels}))",))


def _large_levels(num_steps: int) -> list[float]:
    """Noise levels of the pair's own sampler, without the final 0."""
    from diffusers import UniPCMultistepScheduler

    scheduler = cast(Scheduler, UniPCMultistepScheduler.from_pretrained(REFERENCE.large, subfolder="scheduler"))
    scheduler.set_timesteps(num_steps)
    return scheduler.sigmas[:-1].tolist()


COLUMNS = (
    Column(
        "50 UniPC",
        ("unipc(num_inference_steps=50)",),
        published={"SSS": 3129, "LSS": 13858, "LSL": 19222, "SLL": 24586, "LLL": 29950},
        published_setting=(
            "WAN 2.1 14B/1.3B, 50 steps, L on 1-20 and 41-50 under LSL. SLL's total is that of S on 10 steps, not 20"
        ),
    ),
    Column(
        "20 DPM++ 2M",
        ("dpmpp_2m(num_inference_steps=20)",),
        published={"LLL": 1748, "LSL": 928, "SSS": 257},
        published_setting="LTX-Video 13B/2B, 20 steps of DPM++, L on half of them under LSL",
    ),
    Column("8 distilled", ("distilled(num_inference_steps=8)",)),
    OwnLevelsColumn(
        "20 UniPC, S distilled",
        ("distilled_small(sigmas=...)",),
        control=("unipc(num_inference_steps=20)",),
        published={"LLL": 3496, "LSL": 1774, "SSS": 51},
        published_setting="LTX-Video 13B and distilled 2B, L on 20 of 40 steps under LDL, DDD 8 calls without guidance",
        small_letter="D",
    ),
)
"""The first is the baseline of the whole table."""
