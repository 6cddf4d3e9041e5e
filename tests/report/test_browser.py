"""The report in a real browser: first screen, table, filters, URL, download, dialog; on a phone and in the dark."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowblend_compat_matrix.report import render_report
from flowblend_compat_matrix.results.matrix_results import Confirmation, HeadlineRecord
from flowblend_compat_matrix.running.folder import encode_videos
from tests.report.browser import CHROMIUM, Browser, browser
from tests.report.samples import ATTACK, cell, matrix, refused

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

OPENED = "document.querySelector('dialog').open"
PAIR = "article.pair:not([hidden])"
SHOWN = f"[...document.querySelectorAll('{PAIR} tbody button.cell')].map((one) => one.textContent)"
FOUND = f"document.querySelector('{PAIR} .found').innerText"
# Texts that stand on one another: leaves of the page, as the browser lays out their lines.
OVERLAPPING = """(() => {
  const boxes = [];
  const walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility() || parent.closest('.scroll, option, select, pre')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const { left, top, right, bottom } of range.getClientRects()) {
      boxes.push([left + 1, top + 3, right - 1, bottom - 3, node.data.trim()]);
    }
  }
  return boxes.flatMap((a, at) => boxes.slice(at + 1)
    .filter((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]).map((b) => [a[4], b[4]]));
})()"""


def _videos(folder: Path, name: str, num_frames: int) -> list[str]:
    videos = np.random.default_rng(0).random((2, num_frames, 64, 64, 3), dtype=np.float32)
    encoded = encode_videos(videos, name, as_stills=num_frames == 1)
    for path, content in encoded.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    return list(encoded)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two pairs with videos and stills, and hostile text in all that comes from outside."""
    folder = tmp_path_factory.mktemp("report")
    confirmed = Confirmation(num_prompts=24, psnr_db=25.4, psnr_db_interval=[25.1, 25.7], speedup_over_large=1.7)
    fast: dict[str, Any] = {"speedup_over_large": 2.5, "psnr_db": 25.2, "psnr_db_interval": [24.6, 25.8]}
    full = matrix(
        cell("LLL", is_identical_to_large=True, psnr_db=None, speedup_over_large=1.0),
        cell("LSL", videos=_videos(folder, "LSL", 9), num_prompts=12),
        cell("LSS", id="LSS + a", adapters=["a(x='1')"], confirmation=confirmed, videos=_videos(folder, "LSS", 9)),
        cell("SSS", observed="undecided", num_prompts=64, **fast),
        cell("LSL", id=f"=LSL + {ATTACK}", adapters=[ATTACK], reasons=[ATTACK], observed="degraded", psnr_db=12.0),
        refused("LSL + a"),
    )
    first = full.run.pairs[0]
    first.prompts[0] = ATTACK
    first.large_only.videos, first.small_only.videos = _videos(folder, "large", 9), _videos(folder, "small", 9)
    first.headline, first.front = HeadlineRecord(cell="LSS + a"), ["LSS + a", "LLL"]
    other = matrix(cell("LSL", pair="stills", videos=_videos(folder, "still", 1)), name="stills", makes="stills")
    other.run.pairs[0].divergence = []
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


def test_the_first_screen_answers(chromium: Browser, page: Path) -> None:
    chromium.open(page, width=1280, height=800)
    bottom = "document.querySelector('{}').getBoundingClientRect().bottom"
    assert chromium.run(bottom.format(f"{PAIR} .type")) <= 800
    height = f"getComputedStyle(document.querySelector('{PAIR} .legend')).lineHeight"
    legend = f"document.querySelector('{PAIR} .legend').getBoundingClientRect().height"
    assert chromium.run(legend) <= float(chromium.run(height).removesuffix("px")) + 1, "one line"
    said = chromium.run(f"document.querySelector('{PAIR} .first').innerText")
    for words in (
        "Which schedule",
        "LSS + a is 1.70×",
        "25.4 dB PSNR (25.1–25.7) over 24 prompts",
        "confirmed",
        "small",
    ):
        assert words in said
    assert """flowblend run --pair tiny --schedule LSS --adapter "a(x='1')" --compare""" in said
    videos = f"[...document.querySelectorAll('{PAIR} .show video')]"
    titles = f"[...document.querySelectorAll('{PAIR} .show figcaption b')].map((one) => one.textContent)"
    assert chromium.run(titles) == ["large only", "LSS + a", "LSL", "small only"]
    tops = chromium.run(f"{videos}.map((one) => one.getBoundingClientRect().top)")
    assert len(tops) == 4
    assert len(set(tops)) == 1, "side by side"
    times = f"{videos}.map((one) => one.currentTime)"  # on a busy machine one may start later; then all start again
    chromium.wait(f"Math.min(...{times}) > 0.2 && Math.max(...{times}) - Math.min(...{times}) < 1 / 8")


def test_sliders_sort_and_the_url_keep_what_was_asked(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    assert chromium.run(SHOWN)[:2] == ["SSS", "LSS + a"], "the fastest first"
    slide = (
        "(() => {{ const it = document.querySelector('[name={}]'); it.value = {};"
        " it.dispatchEvent(new Event('input', {{ bubbles: true }})); }})()"
    )
    chromium.run(slide.format("psnr", 25))
    assert chromium.run(SHOWN) == ["SSS", "LSS + a", "LLL"], "what is filtered out is gone"
    assert "Fastest of them: SSS" in chromium.run(FOUND)
    assert "not certainly at least 25 dB: its interval begins at 24.6" in chromium.run(FOUND)
    chromium.click("[name=front]")
    assert chromium.run(SHOWN) == ["LSS + a", "LLL"]
    assert "certainly at least 25 dB; confirmed" in chromium.run(FOUND)
    chromium.click(f"{PAIR} [data-sort=speed]")
    assert chromium.run(SHOWN) == ["LLL", "LSS + a"]
    assert chromium.run(f"document.querySelector('{PAIR} th.speed').ariaSort") == "ascending"
    chromium.run(slide.format("speed", 1.5))
    chromium.click(f"{PAIR} button.cell")
    url = chromium.run("location.hash")
    for part in ("psnr=25", "speed=1.5", "front=1", "sort=speed.up", "cell=LSS"):
        assert part in url
    chromium.send("Page.navigate", url="about:blank")
    chromium.send("Page.navigate", url=page.as_uri() + url)
    chromium.wait("document.readyState === 'complete' && location.protocol === 'file:'")
    assert chromium.run(SHOWN) == ["LSS + a"]
    assert chromium.run(f"{OPENED} && document.querySelector('#cell-title').textContent") == "LSS + a"
    chromium.press("Escape")
    chromium.wait(f"!{OPENED} && !location.hash.includes('cell=')")
    chromium.click(f"{PAIR} button[type=reset]")
    assert len(chromium.run(SHOWN)) == 6
    assert chromium.run("location.hash") == ""
    chromium.run("location.hash = '#q=no!'")
    chromium.wait(f"{SHOWN}.length === 1")
    assert chromium.run(SHOWN) == ["LSL + a"], "by a reason"
    chromium.run("location.hash = '#sort=nonsense&psnr=x&pair=stills'")
    chromium.wait(f"document.querySelector('{PAIR}').dataset.pair === 'stills'")


def test_the_csv_holds_what_is_shown(chromium: Browser, page: Path, tmp_path: Path) -> None:
    chromium.open(page)
    chromium.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    chromium.run("location.hash = '#verdict=degraded'")
    chromium.wait(f"{SHOWN}.length === 1")
    chromium.click(f"{PAIR} .csv")
    chromium.wait("true")
    path = tmp_path / "cells.csv"
    for _ in range(100):
        if path.exists() and path.stat().st_size:
            break
        chromium.run("new Promise((done) => setTimeout(done, 50))")
    [row] = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    assert row["cell"] == f"'=LSL + {ATTACK}", "no spreadsheet takes it for a formula"
    assert (row["psnr"], row["speed"], row["verdict"]) == ("12", "1.4", "degraded")


def test_a_cell_is_opened_walked_from_and_closed(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    chromium.click("button.cell[data-cell='1']")
    assert chromium.run(OPENED)
    shown = chromium.run("document.querySelector('dialog').innerText")
    for words in (
        "Within the budget.",
        "22.0",
        '<script>alert("x")</script>',
        "flowblend run --pair tiny --schedule LSL",
    ):
        assert words in shown
    assert chromium.run("document.querySelectorAll('dialog .lanes i').length") > 0
    videos = "[...document.querySelectorAll('dialog video')]"
    assert chromium.run(f"{videos}.length") == 3
    chromium.click("dialog .player button.play")
    chromium.wait(f"{videos}.every((one) => one.paused)")
    chromium.click("dialog [aria-label='Next cell']")
    chromium.wait("document.querySelector('#cell-title').textContent !== 'LSL'")
    chromium.press("Escape")
    chromium.wait(f"!{OPENED} && !location.hash.includes('cell=')")
    chromium.click("[role=tab]:nth-child(2)")
    assert chromium.run(f"[...document.querySelectorAll('{PAIR} .show img')].every((one) => one.naturalWidth > 0)")
    assert chromium.run(f"document.querySelector('{PAIR} .divergence')") is None, "no section without content"
    chromium.click(f"{PAIR} button.cell")
    assert chromium.run("document.querySelectorAll('dialog img').length") == 1, "a still"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_nothing_overlaps_and_all_text_has_one_size(chromium: Browser, page: Path, width: int, dark: bool) -> None:
    chromium.open(page, width=width, height=800, dark=dark)
    assert chromium.run(OVERLAPPING) == []
    sizes = "[...new Set([...document.querySelectorAll('main *')].map((one) => getComputedStyle(one).fontSize))]"
    assert chromium.run(sizes) == ["15px"]
    assert chromium.run("document.documentElement.scrollWidth") <= width
    chromium.click("button.cell[data-cell='1']")
    assert chromium.run("document.querySelector('dialog .sheet').scrollWidth") <= width
    light = chromium.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(light[:3]) < 3 * 128) is dark


def test_videos_that_are_left_out_name_the_command_that_makes_them(chromium: Browser, page: Path) -> None:
    full = matrix(cell("LSL", videos=["videos/LSL-1.mp4"]), command="flowblend matrix run --out out/demo")
    path = page.with_name("small.html")
    path.write_text(render_report(full, page.parent, max_bytes=1), encoding="utf-8")
    chromium.open(path)
    said = chromium.run("document.querySelector('.show').innerText")
    assert "videos/LSL-1.mp4 is not in this file. It is made by: flowblend matrix run --out out/demo" in said
    assert json.dumps("flowblend matrix run --out out/demo").strip('"') in chromium.run(
        "document.querySelector('.outside').innerText"
    )
