"""The study of blending: schedules it makes up, and one row against the plain pipelines."""

from __future__ import annotations

import pytest

from flowblend_compat_matrix.reference import evaluation_captions
from flowblend_compat_matrix.reference.pair import WEIGHTS, load_classifier, load_pair
from flowblend_plugins import StageSchedule
from flowblend_research.blending_study.__main__ import SECTIONS, Row, Study, evenly, to_markdown
from flowblend_research.blending_study.velocity_predictors import compare_predictors
from flowblend_research.blending_study.velocity_predictors import to_markdown as to_section


@pytest.mark.parametrize(
    ("num_large", "letters"),
    [(1, "LLLLSSSLSS"), (2, "LLLLSSLSLS"), (3, "LLLLSLSLLS"), (6, "LLLLLLLLLL")],
)
def test_large_steps_are_spread_over_what_is_left(num_large: int, letters: str) -> None:
    found = "".join(one.denoiser for one in StageSchedule.parse(evenly(10, 4, num_large)).assignments(10))
    assert found.count("L") == 4 + num_large
    assert found == letters


def test_a_row_is_measured_on_the_embedded_pair() -> None:
    study = Study(load_pair(), load_classifier(WEIGHTS / "classifier"), 2)
    plain, corrected = study.measure("L:8,S:8,L:4"), study.measure("L:8,S:8,L:4", "corrected")
    assert plain.num_large_steps == corrected.num_large_steps == 12
    assert plain.flops_fraction < corrected.flops_fraction < plain.flops_fraction + 0.01, "one small step more"
    assert corrected.psnr_db > plain.psnr_db
    page = to_markdown({"Correction": [plain, corrected]}, 2)
    assert f"| `L:8,S:8,L:4` | `corrected` | 12.0 | {corrected.flops_fraction:.3f} |" in page


def test_guesses_are_compared_with_what_the_large_denoiser_said() -> None:
    guesses = {one.name: one for one in compare_predictors(load_pair(), evaluation_captions(2))}
    last = guesses["the large one's last"]
    assert 0 < last.errors[0] < last.errors[1] < last.errors[2] < last.early_error, "early steps cannot be foretold"
    shared = guesses["the large one's last, and the best share of the small one's change"]
    assert shared.share is not None
    assert 0 < shared.share < 1
    assert guesses["the small denoiser's own"].errors == pytest.approx(
        [guesses["the small denoiser's own"].errors[0]] * 3
    )
    (combined,) = (one for name, one in guesses.items() if "best combination" in name)
    assert combined.early_error < last.early_error
    assert "| the large one's last |" in "\n".join(to_section(list(guesses.values()), 2))


def test_rows_of_the_page_can_be_told_apart() -> None:
    row = Row("LSL", (), 12.0, 0.655, 23.3, 3.0, 0.995, 6.1)
    page = to_markdown({title: [row] for title in SECTIONS}, 32)
    assert page.count("| `LSL` | plain | 12.0 | 0.655 | 23.3 ± 3.0 dB | 99.5% | 6.10 |") == len(SECTIONS)
