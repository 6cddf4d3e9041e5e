"""The report in a real browser: clicked through, walked with the keyboard, on a phone, and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flowblend_compat_matrix.report import render_report
from flowblend_compat_matrix.running.folder import encode_videos
from tests.report.browser import CHROMIUM, Browser, browser
from tests.report.samples import ATTACK, cell, matrix, refused

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

OPENED = "document.querySelector('dialog').open"
TITLE = "document.querySelector('#cell-title')?.textContent"
CELL = ".pair:not([hidden]) button.cell:not(:disabled)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two pairs with videos and stills, and hostile text in all that comes from outside."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    files: dict[str, list[str]] = {}
    for name, num_frames in (("large", 9), ("small", 9), ("LSL", 9), ("still", 1)):
        videos = rng.random((2, num_frames, 64, 64, 3), dtype=np.float32)
        encoded = encode_videos(videos, name, as_stills=num_frames == 1)
        for path, content in encoded.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        files[name] = list(encoded)
    full = matrix(
        cell("LLL", is_identical_to_large=True, psnr_db=None),
        cell("LSL", videos=files["LSL"]),
        cell("LSL", id=f"LSL + {ATTACK}", adapters=[ATTACK], reasons=[ATTACK], observed="degraded", psnr_db=12.0),
        refused("LSL + a"),
    )
    full.run.pairs[0].prompts[0] = ATTACK
    full.run.pairs[0].large_only.videos, full.run.pairs[0].small_only.videos = files["large"], files["small"]
    other = matrix(cell("LSL", pair="stills", videos=files["still"]), name="stills", makes="stills", fps=None)
    full.cells += other.cells
    full.run.pairs += other.run.pairs
    path = folder / "report.html"
    path.write_text(render_report(full, folder), encoding="utf-8")
    return path


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as found:
        yield found
        assert found.complaints() == []


def test_a_cell_is_opened_and_its_videos_play_in_step(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    chromium.click("button.cell[data-cell='1']")
    assert chromium.run(OPENED)
    assert chromium.run(TITLE) == "LSL"
    shown = chromium.run("document.querySelector('dialog').innerText")
    assert "Within the budget." in shown
    assert "22.0" in shown
    assert '<script>alert("x")</script>' in shown, "the prompt, as text"
    steps = "document.querySelectorAll('dialog .lanes i').length"
    assert chromium.run(steps) > 0
    videos = "[...document.querySelectorAll('dialog video')]"
    assert chromium.run(f"{videos}.length") == 3
    chromium.wait(f"{videos}.every((one) => one.currentTime > 0.2)")
    times = chromium.run(f"{videos}.map((one) => one.currentTime)")
    assert max(times) - min(times) < 1 / 8, "no video is a frame ahead of another"
    chromium.click("dialog .player button.play")
    chromium.wait(f"{videos}.every((one) => one.paused)")
    chromium.press("Escape")
    assert not chromium.run(OPENED)
    assert chromium.run("document.activeElement.dataset.cell") == "1", "the focus goes back to where it was"


def test_the_keyboard_alone_is_enough(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    chromium.run(f"document.querySelector({CELL!r}).focus()")
    first = chromium.run("document.activeElement.dataset.cell")
    chromium.press("ArrowRight")
    assert chromium.run("document.activeElement.dataset.cell") != first
    chromium.press("Enter")
    assert chromium.run(OPENED)
    assert chromium.run("document.activeElement.id") == "cell-title"
    chromium.press("Escape")
    chromium.run("document.querySelector('[role=tab]').focus()")
    chromium.press("ArrowRight")
    assert chromium.run("[...document.querySelectorAll('article.pair')].map((one) => one.hidden)") == [True, False]
    chromium.click(CELL)
    assert chromium.run("[...document.querySelectorAll('dialog img')].length") == 1, "a still"
    assert chromium.run("[...document.querySelectorAll('dialog img')].every((one) => one.naturalWidth > 0)")


def test_filters_leave_what_is_asked_for(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    shown = f"[...document.querySelectorAll({CELL!r})].map((one) => Number(one.dataset.cell))"
    assert len(chromium.run(shown)) == 4
    chromium.click(".chip[data-verdict=degraded]")
    assert chromium.run(shown) == [2]
    chromium.click(".pair:not([hidden]) button[type=reset]")
    chromium.wait(f"{shown}.length === 4")
    chromium.run("document.querySelector('[data-filter=text]').focus()")
    chromium.send("Input.insertText", text="No!")
    assert chromium.run(shown) == [3], "by a reason"


def test_what_is_refused_is_folded_until_it_is_asked_for_and_charts_follow_the_filter(
    chromium: Browser, tmp_path: Path
) -> None:
    cells = [cell(name, id=f"{name} + {stack}", adapters=[stack]) for stack in "ab" for name in ("LSL", "LSS")]
    for number in range(8):
        no = refused(f"LSL + no_{number}")
        no.adapters = [f"no_{number}"]
        cells.append(no)
    path = tmp_path / "report.html"
    path.write_text(render_report(matrix(*cells), tmp_path), encoding="utf-8")
    chromium.open(path)
    visible = "[...document.querySelectorAll('button.cell')].filter((one) => one.checkVisibility()).length"
    assert chromium.run(visible) == 4
    chromium.click("tbody:last-of-type .fold")
    assert chromium.run(visible) == 12
    chromium.click("tbody:last-of-type .fold")
    assert chromium.run(visible) == 4
    chromium.run("document.querySelector('[data-filter=text]').focus()")
    chromium.send("Input.insertText", text="no_7")
    assert chromium.run(visible) == 1
    chromium.click("button.cell[data-cell='11']")
    assert chromium.run(TITLE) == "LSL + no_7"
    chromium.press("Escape")
    off = "document.querySelectorAll('svg .point.off').length"
    assert chromium.run(off) == chromium.run("document.querySelectorAll('svg .point').length") > 0
    chromium.click("button[type=reset]")
    chromium.wait(f"{off} === 0")
    assert chromium.run(visible) == 4
    chromium.click("svg .point[data-cell='3'] circle")
    assert chromium.run(TITLE) == "LSS + b"
    chromium.press("Escape")
    chromium.open(path, width=320, height=640)
    assert chromium.run(visible) == 4


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_is_wider_than_the_screen(chromium: Browser, page: Path, dark: bool) -> None:
    chromium.open(page, width=320, height=640, dark=dark)
    assert chromium.run("document.documentElement.scrollWidth") <= 320
    chromium.click("button.cell[data-cell='1']")
    assert chromium.run("document.querySelector('dialog .sheet').scrollWidth") <= 320
    light = chromium.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(light[:3]) < 3 * 128) is dark
