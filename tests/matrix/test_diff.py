"""Two runs side by side: a changed verdict always shows, a figure only where it moved by more than noise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from flowblend_compat_matrix.results.diff import compare_matrices
from flowblend_compat_matrix.results.matrix_results import (
    CellResult,
    Confirmation,
    HeadlineRecord,
    Matrix,
    PairRecord,
    RunRecord,
    read_matrix,
)
from flowblend_compat_matrix.running.folder import write_compact, write_matrix

GOOD = CellResult(
    id="LSL",
    pair="tiny",
    schedule="LSL",
    adapters=[],
    declared="composes",
    observed="pass",
    speedup_over_large=1.40,
    speedup_over_large_interval=[1.37, 1.43],
    num_timed=3,
    num_prompts=4,
    psnr_db=22.0,
    psnr_db_std=3.0,
    ssim=0.80,
    ssim_std=0.05,
    prompt_alignment=0.90,
    num_large_forwards=24,
    flops_fraction_full=0.7,
)


def matrix(*cells: CellResult, seeds: tuple[int, ...] = (0, 1, 2, 3), **environment: Any) -> Matrix:
    pair = PairRecord(
        name="tiny",
        pipeline="WanPipeline",
        makes="videos",
        prompts=["a"] * len(seeds),
        seeds=list(seeds),
        call={},
        early=0.4,
        late=0.2,
    )
    run = RunRecord(
        command="flowblend matrix run",
        pairs=[pair],
        schedules=["LSL"],
        stacks=[],
        depth=1,
        num_repeats=3,
        budget={},
        num_planned=len(cells),
        executor="1 local worker process",
        is_sharing=True,
    )
    return Matrix(environment={"torch": "2.13", "date": "today"} | environment, run=run, cells=list(cells))


def changed(*, seeds: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> list[str]:
    found = compare_matrices(matrix(GOOD), matrix(dataclasses.replace(GOOD, **changes), seeds=seeds))
    return [change.what for change in found.changes]


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({}, []),
        ({"observed": "degraded"}, ["observed"]),
        ({"declared": "inert", "observed": "inert"}, ["observed", "declared"]),
        ({"num_large_forwards": 25}, ["num_large_forwards"]),
        ({"flops_fraction_full": 0.71}, ["flops_fraction_full"]),
        # Rounds spread by 1.3 %, so chance alone moves the speed by less than the 5 % that two moments differ by.
        ({"speedup_over_large": 1.50}, ["speedup_over_large"]),
        ({"speedup_over_large": 1.30}, ["speedup_over_large"]),
        ({"speedup_over_large": 1.46}, []),
        # They spread more, or are so few that nobody knows.
        ({"speedup_over_large": 1.50, "speedup_over_large_interval": [1.2, 1.9]}, []),
        ({"speedup_over_large": 3.00, "speedup_over_large_interval": None, "num_timed": 2}, []),
        # What is not certain contradicts nothing of quality.
        ({"observed": "undecided"}, []),
        ({"observed": "degraded", "is_screened": True}, []),
        ({"observed": "broken"}, ["observed"]),
        # The same prompts at the same seeds: what differs at all differs.
        ({"psnr_db": 21.8}, ["psnr_db"]),
        ({"psnr_db": 21.99}, []),
        ({"ssim": 0.79}, ["ssim"]),
        ({"prompt_alignment": 0.88}, ["prompt_alignment"]),
        ({"psnr_db": None}, ["psnr_db"]),
        # Other seeds: the spread over the videos is the noise, here 2 * hypot(3, 3) / 2 dB.
        ({"psnr_db": 20.0, "seeds": (4, 5, 6, 7)}, []),
        ({"psnr_db": 17.7, "seeds": (4, 5, 6, 7)}, ["psnr_db"]),
        ({"prompt_alignment": 0.7, "seeds": (4, 5, 6, 7)}, []),
    ],
)
def test_what_moved(changes: dict[str, Any], moved: list[str]) -> None:
    assert changed(**changes) == moved


def test_cells_that_came_and_went_and_the_environment() -> None:
    other = dataclasses.replace(GOOD, id="LSS", schedule="LSS")
    found = compare_matrices(matrix(GOOD, date="then"), matrix(other, torch="2.14"))
    assert (found.removed, found.added, found.num_compared) == ([("tiny", "LSL")], [("tiny", "LSS")], 0)
    assert found.environment == {"torch": ("2.13", "2.14")}
    assert not found.is_empty
    assert compare_matrices(matrix(GOOD), matrix(GOOD, torch="2.14")).is_empty


def test_the_compact_file_is_read_as_the_whole_one(tmp_path: Path) -> None:
    confirmed = dataclasses.replace(GOOD, confirmation=Confirmation(num_prompts=48, psnr_db_interval=[21.0, 23.0]))
    whole = matrix(confirmed, CellResult(id="LSS", pair="tiny", schedule="LSS", adapters=["a"], observed="refused"))
    whole.cells[0].psnr_db = 22.0 + 1e-9
    whole.run.pairs[0].headline = HeadlineRecord(cell="LSL")
    path = write_compact(tmp_path, whole)
    found = read_matrix(path)
    whole.cells[0].psnr_db = 22.0
    assert found == whole
    assert compare_matrices(found, whole).is_empty
    assert len(path.read_text().splitlines()) == 2 + len(whole.cells), "a line for each cell"


def test_the_command(flowblend: Any, tmp_path: Path) -> None:
    for name, made in (
        ("old", matrix(GOOD)),
        ("new", matrix(dataclasses.replace(GOOD, observed="degraded", psnr_db=18.0), torch="2.14")),
    ):
        (tmp_path / name).mkdir()
        write_matrix(tmp_path / name, made)
    same = flowblend("matrix", "diff", tmp_path / "old", tmp_path / "old")
    assert (same.code, same.out) == (0, "1 cells compared: nothing changed.\n")
    result = flowblend("matrix", "diff", tmp_path / "old", tmp_path / "new")
    assert result.code == 3
    assert "Verdicts that changed" in result.out
    assert "degraded" in result.out
    assert "torch: 2.13 -> 2.14" in result.out
    found = json.loads(flowblend("matrix", "diff", tmp_path / "old", tmp_path / "new", "--json").out)
    assert [(one["what"], one["old"], one["new"]) for one in found["changes"]] == [
        ("observed", "pass", "degraded"),
        ("psnr_db", 22.0, 18.0),
    ]
    assert flowblend("matrix", "diff", tmp_path / "old", tmp_path / "gone").code == 1
