"""Known outcomes: what an entry is about, when it foresees, when it is stale, and what the shipped ones say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowblend_compat_matrix.cli.options import CallOptions, CellOptions
from flowblend_compat_matrix.cli.plan import known_outcomes, pair_job
from flowblend_compat_matrix.measuring.prompts import EMBEDDED
from flowblend_compat_matrix.plugin import REFERENCE
from flowblend_compat_matrix.results.cells import PAPER_SCHEDULES, parse_stack, plan_cells
from flowblend_compat_matrix.results.expectations import (
    SHIPPED,
    check_expectations,
    read_expectations,
    shipped_expectations,
)
from flowblend_compat_matrix.results.matrix_results import CellResult
from flowblend_compat_matrix.running.planning import all_stacks, combinations
from flowblend_plugins import StageSchedule
from flowblend_plugins.manager import make_plugin_manager

ENTRY = """
[[expectation]]
pair = "tiny"
schedule = ["LSL", "LSS"]
adapters = ["cache", "*"]
observed = "inert"
reason = "It is asked  for  too little."
"""


def cell(observed: str = "inert", declared: str | None = "composes", **changes: Any) -> CellResult:
    values: dict[str, Any] = {"pair": "tiny", "schedule": "LSL", "adapters": ["cache(x=1)", "solver"]} | changes
    return CellResult(id="", observed=observed, declared=declared, **values)


@pytest.fixture
def entries(tmp_path: Path) -> Any:
    path = tmp_path / "known.toml"
    path.write_text(ENTRY)
    return read_expectations(path)


@pytest.mark.parametrize(
    ("found", "expectation", "surprise"),
    [
        (cell("inert"), "It is asked for too little.", None),
        # The same entry, with anything else observed, is stale, whatever is declared.
        (cell("pass"), "It is asked for too little.", "stale_expectation"),
        (cell("broken"), "It is asked for too little.", "stale_expectation"),
        # It is about these pairs, schedules and stacks, in any order, and about no others.
        (cell(adapters=["solver", "cache"]), "It is asked for too little.", None),
        (cell(schedule="SLL"), None, "unexpected"),
        (cell(pair="other"), None, "unexpected"),
        (cell(adapters=["cache"]), None, "unexpected"),
        (cell(adapters=["cache", "a", "b"]), None, "unexpected"),
        (cell(adapters=["a", "b"]), None, "unexpected"),
        # What agrees with its declaration needs none.
        (cell("pass", schedule="SLL"), None, None),
        (cell("degraded", "composes_with_reset", schedule="SLL"), None, None),
        (cell("inert", "inert", schedule="SLL"), None, None),
        (cell("refused", "refused", schedule="SLL"), None, None),
        # Of these nothing was seen.
        (cell("refused", "refused"), None, None),
        (cell("skipped"), None, None),
        # And these are surprises of their own.
        (cell("broken", schedule="SLL"), None, "unexpected"),
        (cell("broken", None, schedule="SLL"), None, "unexpected"),
        (cell("refused", "composes", schedule="SLL"), None, "unexpected"),
        (cell("pass", "inert", schedule="SLL"), None, "unexpected"),
        (cell("pass", "refused", schedule="SLL"), None, "unexpected"),
        (cell("broken", "refused", schedule="SLL"), None, None),
    ],
)
def test_what_is_foreseen(entries: Any, found: CellResult, expectation: str | None, surprise: str | None) -> None:
    check_expectations(found, entries)
    assert (found.expectation, found.surprise) == (expectation, surprise)


@pytest.mark.parametrize(
    ("stack", "adapters", "is_about"),
    [
        ([], [], True),
        ([], ["cache"], False),
        (["cache(x=1, y=2)"], ["cache(y=2,x=1)"], True),
        (["cache(x=1)"], ["cache(x=2)"], False),
        (["cache(x=1)"], ["cache"], False),
        (["cache"], ["cache_two"], False),
        (["*", "*"], ["a", "b"], True),
        # An entry that names less must not take what one that names more needs.
        (["*", "cache"], ["cache", "solver"], True),
        (["cache", "cache(x=1)"], ["cache(x=1)", "cache(x=2)"], True),
    ],
)
def test_which_stacks_an_entry_is_about(tmp_path: Path, stack: Any, adapters: list[str], is_about: bool) -> None:
    path = tmp_path / "known.toml"
    path.write_text(f'[[expectation]]\nadapters = {stack}\nobserved = ["inert", "pass"]\nreason = "r"\n')
    (entry,) = read_expectations(path)
    assert entry.is_about(cell(adapters=adapters)) is is_about


def test_the_last_entry_counts_and_a_cell_is_held_afresh(entries: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[[expectation]]\nobserved = "pass"\nreason = "mine"\n')
    found = cell("pass")
    check_expectations(found, entries)
    assert found.surprise == "stale_expectation"
    check_expectations(found, [*entries, *read_expectations(path)])
    assert (found.expectation, found.surprise) == ("mine", None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[expectation]", "cannot be read"),
        ("[budget]\nx = 1", "[[expectation]] entries and nothing else"),
        ('[[expectation]]\nobserved = "inert"', "entry 1: it gives no reason"),
        ('[[expectation]]\nreason = "r"', "observed = None"),
        ('[[expectation]]\nobserved = "fine"\nreason = "r"', "observed = 'fine'"),
        ('[[expectation]]\nobserved = "inert"\nreason = "r"\nstack = "a"', "stack is not known"),
        ('[[expectation]]\nobserved = "inert"\nreason = "r"\nadapters = 3', "adapters = 3"),
        ('[[expectation]]\nobserved = "inert"\nreason = "r"\nadapters = ["a(1)"]', "cannot be read"),
    ],
)
def test_a_wrong_file_says_what_is_wrong_with_which_entry(
    flowblend: Any, tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "known.toml"
    path.write_text(content)
    result = flowblend("matrix", "run", "--expectations", path, "--out", tmp_path / "out")
    assert result.code == 2
    assert said in result.error_line
    assert not (tmp_path / "out").exists()


def test_shipped_ones_hold_where_the_pair_is_called_as_it_is_meant_to_be() -> None:
    manager = make_plugin_manager()

    def names(**call: Any) -> set[str]:
        job = pair_job(REFERENCE, "reference", CellOptions(), CallOptions(prompts=2, seed=3, **call))
        return {pair for entry in known_outcomes(manager, [job], None) for pair in entry.pairs}

    assert names() == {pair for entry in read_expectations(SHIPPED) for pair in entry.pairs & {"reference"}}
    assert names(steps=7) == set()


def test_every_shipped_entry_is_about_a_cell_of_the_default_matrix() -> None:
    manager = make_plugin_manager()
    singles = [parse_stack(text) for text in all_stacks(manager)]
    stacks = [*singles, *combinations(singles, 2)]
    schedules = [StageSchedule.named(name) for name in PAPER_SCHEDULES]
    cells = [
        CellResult(id=spec.id, pair=pair, schedule=spec.schedule.text, adapters=list(spec.stack))
        for pair in EMBEDDED
        for spec in plan_cells(schedules, stacks)
    ]
    for entry in read_expectations(SHIPPED):
        assert entry.pairs, f"{entry}: a shipped entry names the pairs it is about"
        assert entry.pairs <= set(EMBEDDED)
        assert any(entry.is_about(one) for one in cells), f"{entry}: it is about nothing that `make matrix` runs"


def test_an_entry_of_another_pair_is_not_shipped_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "expectations.toml"
    path.write_text('[[expectation]]\npair = ["reference", "other"]\nobserved = "inert"\nreason = "r"\n')
    monkeypatch.setattr("flowblend_compat_matrix.results.expectations.SHIPPED", path)
    assert [set(entry.pairs) for entry in shipped_expectations(["reference"])] == [{"reference"}]
    assert shipped_expectations(["reference-unet"]) == []


def test_a_pair_with_further_experts_is_refused_before_anything_is_loaded(flowblend: Any, tmp_path: Path) -> None:
    result = flowblend("matrix", "run", "--pair", "wan2.2-t2v", "--out", tmp_path / "out")
    assert result.code == 2
    assert "transformer_2" in result.error_line
    assert not (tmp_path / "out").exists()
