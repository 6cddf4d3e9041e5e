"""The table like the paper's: what is measured against plain pipelines, and what the page says of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from flowblend_compat_matrix.measuring.metrics import psnr_db
from flowblend_compat_matrix.reference import CALL_DEFAULTS, evaluation_captions, load_pair
from flowblend_plugins.contract.spec import read_spec
from flowblend_research.paper_table.__main__ import make_table
from flowblend_research.paper_table.columns import COLUMNS, Column
from flowblend_research.paper_table.page import to_markdown

NUM_PROMPTS = 2
TINY = (
    Column("4 UniPC", ("unipc(num_inference_steps=4)",), published={"LLL": 100, "LSL": 60}, published_setting="A | B"),
    Column("3 DPM++", ("dpmpp_2m(num_inference_steps=3)",), control=(), small_letter="D"),
    Column("absent", ("nonesuch",)),
)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    made = make_table(TINY, NUM_PROMPTS, 1, report=lambda line: None)
    return json.loads(json.dumps(made, allow_nan=False))


def cell(record: dict[str, Any], column: str, schedule: str) -> dict[str, Any]:
    return next(one for one in record["cells"] if (one["column"], one["schedule"]) == (column, schedule))


def plain(small: bool, steps: int, scheduler: Any = None) -> Any:
    pair = load_pair()
    pipe = pair.pipeline
    pipe.set_progress_bar_config(disable=True)
    if small:
        pipe.transformer = pair.small
    if scheduler is not None:
        pipe.scheduler = scheduler
    return pipe(
        [caption.text for caption in evaluation_captions(NUM_PROMPTS)],
        generator=[torch.Generator().manual_seed(number) for number in range(NUM_PROMPTS)],
        **(CALL_DEFAULTS | {"num_inference_steps": steps}),
        output_type="np",
    ).frames


def test_the_rows_are_held_against_plain_pipelines(record: dict[str, Any]) -> None:
    """Large-only and small-only without any of this package, at the first column's steps and the second's."""
    large, small = plain(False, 4), plain(True, 4)
    wanted = np.mean([psnr_db(a, b) for a, b in zip(small, large, strict=True)])
    assert cell(record, "4 UniPC", "SSS")["psnr_to_control_db"] == pytest.approx(wanted)
    dpm = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    other = plain(True, 3, dpm)
    wanted = np.mean([psnr_db(a, b) for a, b in zip(other, large, strict=True)])
    assert cell(record, "3 DPM++", "SSS")["psnr_to_baseline_db"] == pytest.approx(wanted)


def test_the_control_of_a_column_may_be_sampled_otherwise(record: dict[str, Any]) -> None:
    assert cell(record, "3 DPM++", "LLL")["steps"] == "L 1-20"  # the pair's own, as `control=()` says
    assert cell(record, "3 DPM++", "LSL")["steps"] == "L 1, S 2, L 3"


def test_calls_and_flops(record: dict[str, Any]) -> None:
    large, small, blend = (cell(record, "4 UniPC", name) for name in ("LLL", "SSS", "LSL"))
    assert (blend["num_large_forwards"], blend["num_small_forwards"]) == (6, 2)  # of two guidance branches
    per_large, per_small = large["linear_flops"] / 8, small["linear_flops"] / 8
    assert blend["linear_flops"] == pytest.approx(6 * per_large + 2 * per_small)
    assert large["full_flops"] > large["linear_flops"]
    assert large["speedup_over_control"] == large["speedup_over_baseline"] == 1.0


def test_the_page(record: dict[str, Any]) -> None:
    page = to_markdown(record)
    blend = cell(record, "4 UniPC", "LSL")
    row = next(line for line in page.splitlines() if line.startswith("| LSL | L 1-2, S 3, L 4 |"))
    assert "| 60 (60%) |" in row
    assert f"{blend['psnr_to_control_db']:.1f} ± {blend['psnr_to_control_std_db']:.1f}" in row
    assert "| LDL | L 1, D 2, L 3 |" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {12}
    assert len(rows) == 2 * (2 + 5)


def test_a_column_that_cannot_be_made_is_said_to_be_missing(record: dict[str, Any]) -> None:
    assert [absent["name"] for absent in record["absent"]] == ["absent"]
    page = to_markdown(record)
    assert "**Incomplete**: not measured are absent" in page
    assert "there is no adapter 'nonesuch'" in page
    assert "Incomplete" not in to_markdown(record | {"absent": []})


def test_the_columns_are_those_of_the_issue() -> None:
    adapters = [[read_spec(text)[0] for text in column.spec("LSL").stack] for column in COLUMNS]
    assert adapters == [["unipc"], ["dpmpp_2m"], ["distilled"], ["distilled_small"]]
    published = COLUMNS[0].published
    assert published["LSL"] / published["LLL"] == pytest.approx(0.6418, abs=1e-4)


def test_each_denoiser_of_ldl_is_sampled_at_its_own_levels() -> None:
    column = COLUMNS[-1]
    blend, alone = column.spec("LSL"), column.spec("SSS")
    assert blend.schedule.text == "L:10,S:3,L:3"  # large steps until the first of the small one's levels in its stage
    levels = read_spec(blend.stack[0])[1]["sigmas"]
    assert levels[:10] == pytest.approx([1.0 - index / 20 for index in range(10)], abs=1e-2)
    assert levels[10:13] == pytest.approx([0.5, 0.375, 0.25], abs=1e-2)  # of the eight that it was distilled at
    assert levels[13:] == pytest.approx([0.125, 0.1, 0.05], abs=1e-2)
    assert alone.stack == ("distilled(num_inference_steps=8)",)
    assert column.spec("LLL").stack == ("unipc(num_inference_steps=20)",)
