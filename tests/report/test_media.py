"""Videos and stills on the page: those that fit, the most relevant first, and none from elsewhere."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import numpy as np
import pytest

from flowblend_compat_matrix.report import MAX_BYTES, render_report
from flowblend_compat_matrix.report.media import by_relevance, choose_media, on_front
from flowblend_compat_matrix.results.matrix_results import CellResult, Matrix
from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.files.video import write_mp4, write_png
from tests.report.samples import cell, embedded, matrix, refused


def test_videos_and_stills_are_inside_the_page_and_equal_ones_once(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_mp4(np.full((3, 16, 16, 3), 0.25), tmp_path / "videos/1.mp4")
    write_png(np.full((16, 16, 3), 0.5), tmp_path / "videos/2.png")
    (tmp_path / "videos/3.mp4").write_bytes((tmp_path / "videos/1.mp4").read_bytes())
    names = ["videos/1.mp4", "videos/2.png", "videos/3.mp4"]
    media = embedded(render_report(matrix(cell(videos=names)), tmp_path), "media")
    assert media["index"]["videos/3.mp4"] == media["index"]["videos/1.mp4"]
    for name in names:
        kind, content = media["contents"][media["index"][name]]
        assert base64.b64decode(content) == (tmp_path / name).read_bytes()
        assert kind == ("image/png" if name.endswith("png") else "video/mp4")
    assert len(media["contents"]) == 2
    assert media["leftOut"] == []


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/hostname", "notes.txt"])
def test_files_that_are_no_videos_of_the_folder_are_not_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for path in (tmp_path / "secret.mp4", folder / "notes.txt"):
        path.write_text("secret")
    with pytest.raises(FlowBlendError, match="not read"):
        render_report(matrix(cell(videos=[name])), folder)


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlowBlendError, match=r"gone\.mp4"):
        render_report(matrix(cell(videos=["gone.mp4"])), tmp_path)


def shown() -> Matrix:
    """Cells in an order that is not that of their relevance, with two prompts each."""

    def with_videos(one: CellResult) -> CellResult:
        one.videos = [f"{one.id}-1.mp4", f"{one.id}-2.mp4"]
        return one

    cells = [
        cell(id="slow", adapters=["a"], speedup_over_large=1.1, psnr_db=21.0),
        cell(id="bad", adapters=["b"], speedup_over_large=1.3, psnr_db=15.0, observed="degraded"),
        cell(id="fast", adapters=["c"], speedup_over_large=3.0, psnr_db=25.0),
        cell(id="odd", adapters=["d"], speedup_over_large=1.0, psnr_db=20.0, surprise="unexpected"),
        cell(id="LSL", speedup_over_large=1.4, psnr_db=22.0),
    ]
    results = matrix(*map(with_videos, cells), refused("no"))
    results.run.pairs[0].large_only.videos = ["large-1.mp4", "large-2.mp4"]
    results.run.pairs[0].small_only.videos = ["small-1.mp4", "small-2.mp4"]
    return results


def test_the_first_prompt_of_everything_comes_before_the_second_of_anything() -> None:
    first = ["large", "small", "fast", "LSL", "odd", "slow", "bad"]
    assert list(by_relevance(shown())) == [f"{name}-{prompt}.mp4" for prompt in (1, 2) for name in first]


def test_the_front_holds_what_nothing_beats() -> None:
    exact = cell(id="exact", is_identical_to_large=True, psnr_db=None, speedup_over_large=1.0)
    broken = cell(id="broken", observed="broken", speedup_over_large=9.0, psnr_db=90.0)
    assert [one.id for one in on_front([*shown().cells, exact, broken])] == ["exact", "fast"]


def test_the_page_stays_under_its_limit_and_says_what_lies_outside(tmp_path: Path) -> None:
    results = shown()
    names = list(by_relevance(results))
    for name in names:
        (tmp_path / name).write_bytes(os.urandom(30_000))
    empty = len(render_report(results, tmp_path, max_bytes=0).encode())
    limit = empty + 4 * 40_000 + 2_000
    source = render_report(results, tmp_path, max_bytes=limit)
    media = embedded(source, "media")
    assert limit - 45_000 < len(source.encode()) <= limit
    assert list(media["index"]) == names[:4]
    assert media["leftOut"] == names[4:]


def test_a_smaller_video_takes_the_room_that_a_larger_one_left(tmp_path: Path) -> None:
    results = shown()
    for name in by_relevance(results):
        (tmp_path / name).write_bytes(os.urandom(9_000 if name == "LSL-1.mp4" else 300))
    media = choose_media(results, tmp_path, 4_000)
    assert "LSL-1.mp4" in media.left_out
    assert list(media.index)[:4] == ["large-1.mp4", "small-1.mp4", "fast-1.mp4", "odd-1.mp4"]


def test_a_thousand_cells_on_two_pairs_fit(tmp_path: Path) -> None:
    rows = cell().timeline * 5
    cells = [
        cell(
            schedule,
            id=f"{schedule} + one(threshold={number}) + another(setting={number})",
            adapters=[f"one(threshold={number})", f"another(setting={number})"],
            reasons=["Within the budget: PSNR 22.0 dB (at least 20), SSIM 0.800 (at least 0.75)."],
            timeline=rows,
            videos=[f"{schedule}-{number}.mp4"],
        )
        for number in range(200)
        for schedule in ("LLL", "LSL", "LSS", "SLL", "SSS")
    ]
    for one in cells:
        (tmp_path / one.videos[0]).write_bytes(os.urandom(12_000))
    source = render_report(matrix(*cells), tmp_path)
    assert len(source.encode()) <= MAX_BYTES
    media = embedded(source, "media")
    assert len(media["index"]) + len(media["leftOut"]) == 1000
    assert 0 < len(media["leftOut"]) < 300
