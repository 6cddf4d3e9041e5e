"""The report: nothing from outside gets through as markup, every state of a cell has a picture, charts are in place."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowblend_compat_matrix.report import render_report
from flowblend_compat_matrix.report.charts import WIDTH, Marked, line_chart, pareto_front, scatter
from flowblend_compat_matrix.report.headline import headline
from flowblend_compat_matrix.report.terminal import print_matrix
from flowblend_compat_matrix.results import CellResult, ControlResult, Matrix, PairRecord, RunRecord
from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.video import write_mp4

ATTACK = """<script>alert("x")</script><img src=x onerror=alert(1)>"'` {{ 7*7 }} {% raw %} [bold]"""
BUDGET = {"min_psnr_db": 20.0, "min_ssim": 0.75, "min_alignment_kept": 0.96}


class Page(html.parser.HTMLParser):
    """What a browser would make of the page: its elements and the text between them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def cell(name: str = "LSL", **changes: Any) -> CellResult:
    timeline = [
        {"step_index": i, "sigma": 1 - i / 4, "denoiser": letter, "stage": "early", "outcomes": {"cond": "compute"}}
        for i, letter in enumerate(name[:3] + name[2:3])
    ]
    values: dict[str, Any] = {
        "id": name,
        "pair": "tiny",
        "schedule": name,
        "adapters": [],
        "stages": "L 1, S 2, L 3-4",
        "declared": "composes",
        "observed": "pass",
        "reasons": ["Within the budget."],
        "latency_ms": 700.0,
        "latency_ms_range": [690.0, 720.0],
        "speedup_over_large": 1.4,
        "speedup_over_large_range": [1.3, 1.5],
        "flops_fraction_linear": 0.65,
        "flops_fraction_full": 0.66,
        "num_large_forwards": 6,
        "num_small_forwards": 2,
        "num_reused_forwards": 0,
        "num_predicted_forwards": 0,
        "timeline": timeline,
        "psnr_db": 22.0,
        "psnr_db_std": 1.0,
        "ssim": 0.8,
        "ssim_std": 0.02,
        "metrics": {"flicker": {"mean": 0.02, "std": 0.001}},
        "is_identical_to_large": False,
        "is_warm_equal": True,
        "is_teardown_clean": True,
    }
    return CellResult(**(values | changes))


def refused(name: str) -> CellResult:
    return CellResult(id=name, pair="tiny", schedule="LSL", adapters=["a"], observed="refused", reasons=["No.", "No!"])


def matrix(*cells: CellResult, **run: Any) -> Matrix:
    pair: dict[str, Any] = {
        "name": "tiny",
        "pipeline": "WanPipeline",
        "makes": "videos",
        "prompts": ["a red circle", "a circle"],
        "seeds": [0, 1],
        "call": {"num_inference_steps": 4, "guidance_scale": 5.0},
        "early": 0.4,
        "late": 0.2,
        "boundary_steps": [2, 3],
        "judge": None,
        "fps": 8.0,
        "large_only": ControlResult(latency_ms=1000.0, linear_flops=10**9, full_flops=2 * 10**9, num_forwards=8),
    }
    record: dict[str, Any] = {
        "command": "flowblend matrix run",
        "schedules": list(dict.fromkeys(one.schedule for one in cells)),
        "stacks": [],
        "depth": 0,
        "num_repeats": 3,
        "budget": BUDGET,
        "num_planned": len(cells),
        "executor": "1 worker process",
        "is_sharing": True,
    }
    divergence = [
        {"step_index": i, "sigma": 1 - i / 4, "branch": branch, "cosine": 0.9 + i / 100, "relative_l2": 0.3 - i / 100}
        for i in range(4)
        for branch in ("cond", "uncond", "guided")
    ]
    environment = {"date": "2026-01-02T03:04:05+00:00", "device": "a CPU", "num_threads": 1, "load_average": 0.5}
    asked = {name: value for name, value in run.items() if name not in record}
    record |= {name: value for name, value in run.items() if name in record}
    pair |= {"name" if name == "pair" else name: value for name, value in asked.items()}
    record["pairs"] = [PairRecord(**pair, divergence=divergence)]
    return Matrix(environment=environment, run=RunRecord(**record), cells=list(cells))


def test_what_comes_from_outside_stays_text(tmp_path: Path) -> None:
    hostile = cell(
        id=ATTACK,
        schedule=ATTACK,
        adapters=[ATTACK],
        stages=ATTACK,
        declared_reasons=[ATTACK],
        reasons=[ATTACK],
        error=ATTACK,
        metrics={ATTACK: {"mean": 1.0, "std": 0.0}},
        videos=["v.mp4"],
    )
    write_mp4(np.zeros((3, 16, 16, 3)), tmp_path / "v.mp4")
    results = matrix(
        hostile, prompts=[ATTACK], command=ATTACK, pair=ATTACK, pipeline=ATTACK, judge=ATTACK, call={ATTACK: ATTACK}
    )
    results.environment[ATTACK] = ATTACK
    results.run.pairs[0].divergence[0]["branch"] = ATTACK
    page = Page(render_report(results, tmp_path))
    assert len(page.of("script")) == 1
    assert not page.of("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(ATTACK) >= 8
    assert page.of("video")[0]["aria-label"] == f"{ATTACK}: {ATTACK}"


def test_only_the_page_s_own_script_may_run_and_nothing_is_fetched(tmp_path: Path) -> None:
    source = render_report(matrix(cell()), tmp_path)
    page = Page(source)
    policy = next(meta["content"] or "" for meta in page.of("meta") if "http-equiv" in meta)
    script = re.search(r"<script>(.*)</script>", source, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    links = [a.get(name) for _, a in page.elements for name in ("src", "href") if a.get(name)]
    assert all(link.startswith(("#", "data:")) for link in links if link)
    assert "http" not in re.sub(r"http-equiv|xmlns", "", source)


def test_videos_are_inside_the_page(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number in (1, 2):
        write_mp4(np.full((3, 16, 16, 3), number / 4), tmp_path / f"videos/{number}.mp4")
    page = Page(render_report(matrix(cell(videos=["videos/1.mp4", "videos/2.mp4"])), tmp_path))
    for number, video in enumerate(page.of("video"), start=1):
        kind, _, content = (video["src"] or "").partition("base64,")
        assert kind == "data:video/mp4;"
        assert base64.b64decode(content) == (tmp_path / f"videos/{number}.mp4").read_bytes()
    assert len(page.of("video")) == 2


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


def test_every_state_of_a_cell_has_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identical = cell("LLL", is_identical_to_large=True, psnr_db=None, psnr_db_std=None)
    broken = cell("LSS", observed="broken", reasons=["It raised ValueError: [red]no"], error="Traceback", psnr_db=None)
    stacked = cell("SLL + a(x=1)", adapters=["a(x=1)"], speedup_over_blend=1.1, speedup_over_stack=1.2)
    results = matrix(identical, cell(), broken, stacked, refused("LSL + a + b"), num_planned=9)
    page = Page(render_report(results, tmp_path))
    for said in ("identical", "Interrupted: 5 of 9", "ValueError: [red]no", "stacking efficiency", "LSL + a + b"):
        assert said in page.text
    print_matrix(results, tmp_path / "report.html")
    printed = capsys.readouterr().out
    assert "ValueError: [red]no" in printed
    assert "identical" in printed


def test_nothing_measured_is_a_page_too(tmp_path: Path) -> None:
    results = matrix(refused("LSL + a"))
    results.run.pairs[0].divergence = []
    page = Page(render_report(results, tmp_path))
    assert not page.of("svg")
    assert "Nothing here could be compared" in page.text


def test_results_survive_their_file() -> None:
    results = matrix(cell(), refused("LSL + a"))
    assert Matrix.from_dict(results.to_dict()) == results


def test_the_headline_names_the_fastest_cell_within_the_budget() -> None:
    slow = cell("LSS", speedup_over_large=1.2)
    fast_but_bad = cell("SSS", speedup_over_large=5.0, observed="degraded", psnr_db=11.0)
    found = headline(matrix(slow, cell(), fast_but_bad))
    assert found.text.startswith("LSL is 1.40× as fast")
    found = headline(matrix(fast_but_bad))
    assert "No cell" in found.text
    assert "SSS" in found.detail
    assert "Broken: LSL." in headline(matrix(cell(observed="broken"))).detail


def test_pareto_front_against_every_pair_of_points() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.integers(0, 8, size=(40, 2))]
    beaten = {p for p in points for q in points if q != p and q[0] >= p[0] and q[1] >= p[1]}
    assert sorted(pareto_front(points)) == sorted(set(points) - beaten)


def test_charts_keep_inside_their_box_and_labels_apart() -> None:
    marked = [Marked(f"cell {n}", "pass", "", 1.0 + n / 50, (0.9, 2.0), 20.0 + n / 10) for n in range(6)]
    marked.append(Marked("LLL", "pass", "", 1.0, (0.98, 1.02), math.inf))
    chart = scatter(marked, budget=20.0)
    for point in chart.points:
        assert chart.left <= point.low <= point.x <= point.high <= WIDTH
        assert 0 <= point.y <= chart.bottom
    assert chart.points[-1].y == chart.band_y < chart.top
    faster, better = (chart.points[5], chart.points[0])
    assert faster.x > better.x
    assert chart.points[5].y < chart.points[0].y, "more dB is further up"
    assert len({(point.text.x, point.text.y) for point in chart.points}) == len(chart.points)


def test_boundaries_stand_between_the_steps() -> None:
    values = [(step, 0.5 + step / 100) for step in range(50)]
    chart = line_chart("t", "y", [("all", "cond", values)], boundaries=[20, 40])
    assert [zone.label for zone in chart.zones] == ["early", "intermediate", "late"]
    xs = [float(pair.split(",")[0]) for pair in chart.lines[0].points.split()]
    start = chart.zones[1].x
    assert xs[19] < start < xs[20]
    assert xs[39] < chart.zones[2].x < xs[40]
    assert chart.zones[2].x + chart.zones[2].width == pytest.approx(chart.right)
    assert all(0 <= float(pair.split(",")[1]) <= chart.height for pair in chart.lines[0].points.split())
