"""Which cells a matrix has, and what they are called."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from flowblend_compat_matrix.results.cells import PAPER_SCHEDULES, CellSpec, parse_stack, plan_cells
from flowblend_compat_matrix.running.planning import suggested_stacks
from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, StageSchedule, hookimpl
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import BLOCK_VARIABLE, make_plugin_manager

FIVE = [StageSchedule.named(name) for name in PAPER_SCHEDULES]


def test_without_adapters_a_cell_for_each_schedule() -> None:
    assert [cell.id for cell in plan_cells(FIVE)] == ["LLL", "LSL", "LSS", "SLL", "SSS"]


def test_stacks_are_crossed_with_schedules_after_the_schedules_alone() -> None:
    cells = plan_cells(FIVE[:2], [("flow_euler",), ("unipc(num_inference_steps=5)", "cache")])
    assert [cell.id for cell in cells] == [
        "LLL",
        "LSL",
        "LLL + flow_euler",
        "LSL + flow_euler",
        "LLL + unipc(num_inference_steps=5) + cache",
        "LSL + unipc(num_inference_steps=5) + cache",
    ]


def test_what_is_asked_twice_is_measured_once() -> None:
    assert len(plan_cells([*FIVE, *FIVE], [("unipc",), ("unipc",)])) == 10


def test_cells_that_would_overwrite_each_others_files_are_refused() -> None:
    schedule = StageSchedule.named("LSL")
    with pytest.raises(UsageError, match="told apart"):
        plan_cells([schedule], [("unipc(a=1)",), ("unipc(a-1)",)])


def test_file_stems_hold_nothing_that_a_path_could_mind() -> None:
    stem = CellSpec(StageSchedule.parse("L>=0.9,S>=0.4,L"), ("teacache(path='../x')",)).file_stem
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
    assert "/" not in stem


def test_only_the_bare_large_denoiser_is_large_alone() -> None:
    lll = StageSchedule.named("LLL")
    assert CellSpec(lll).is_large_alone
    assert CellSpec(StageSchedule.named("LSL", 0.5, 0.5)).is_large_alone
    assert not CellSpec(lll, ("unipc",)).is_large_alone
    assert not CellSpec(StageSchedule.named("LSL")).is_large_alone


@pytest.mark.parametrize(
    ("text", "stack"),
    [
        ("unipc", ("unipc",)),
        (" unipc(a=1) + flow_euler ", ("unipc(a=1)", "flow_euler")),
        ("unipc(a=1e+5)+cache", ("unipc(a=1e+5)", "cache")),
    ],
)
def test_stack_texts(text: str, stack: tuple[str, ...]) -> None:
    assert parse_stack(text) == stack


@pytest.mark.parametrize("text", ["", "unipc +", "+ unipc", "a + + b"])
def test_an_empty_place_in_a_stack_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--adapter"):
        parse_stack(text)


class Suggesting:
    """Contributes a cache with two settings worth trying, and one without any."""

    @hookimpl
    def flowblend_register_adapters(self) -> list[type[Adapter]]:
        return [Suggested, Silent]


@dataclass(frozen=True, kw_only=True)
class Silent(Adapter):
    name: ClassVar[str] = "silent"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.DISTILLED_SAMPLER)

    def attach(self, target: AttachTarget) -> Any:
        return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class Suggested(Silent):
    name: ClassVar[str] = "suggested"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.FEATURE_CACHING)
    suggested: ClassVar[tuple[str, ...]] = ("suggested", "suggested(threshold=0.2)")
    threshold: float = 0.1


def test_a_family_is_its_adapters_at_the_settings_they_suggest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BLOCK_VARIABLE, "adapters")  # whatever the installed ones suggest
    manager = make_plugin_manager([Suggesting()])
    stacks = suggested_stacks(manager, Family.FEATURE_CACHING)
    assert stacks == ["suggested", "suggested(threshold=0.2)"]
    with pytest.raises(UsageError, match="distilled_sampler: no adapter of this family is installed, or none suggests"):
        suggested_stacks(manager, Family.DISTILLED_SAMPLER)
