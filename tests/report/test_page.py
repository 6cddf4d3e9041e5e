"""The page: nothing from outside gets through as markup, nothing is fetched, every state of a cell has a picture."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from pathlib import Path

import numpy as np
import pytest

from flowblend_compat_matrix.report import render_report
from flowblend_compat_matrix.report.details import json_for_script, timeline
from flowblend_compat_matrix.report.headline import headline
from flowblend_compat_matrix.report.media import pareto_front
from flowblend_compat_matrix.report.view import command_prefix
from flowblend_compat_matrix.results.matrix_results import Confirmation, HeadlineRecord, Matrix
from tests.report.samples import ATTACK, Page, cell, embedded, matrix, refused


def test_what_comes_from_outside_stays_text(tmp_path: Path) -> None:
    hostile = cell(
        id=ATTACK,
        schedule=ATTACK,
        adapters=[ATTACK],
        stages=ATTACK,
        declared=ATTACK,
        observed=ATTACK,
        declared_reasons=[ATTACK],
        reasons=[ATTACK],
        error=ATTACK,
        expectation=ATTACK,
        metrics={ATTACK: {"mean": 1.0, "std": 0.0}},
        videos=["v.png"],
    )
    hostile.timeline[0] |= {"stage": ATTACK, "denoiser": ATTACK, "outcomes": {ATTACK: ATTACK}}
    (tmp_path / "v.png").write_bytes(b"not looked into")
    changes = {"prompts": [ATTACK], "command": ATTACK, "pair": ATTACK, "pipeline": ATTACK, "judge": ATTACK}
    results = matrix(hostile, call={ATTACK: ATTACK}, executor=ATTACK, families={ATTACK: ATTACK}, **changes)
    hostile.pair = ATTACK
    results.environment |= {ATTACK: ATTACK, "packages": {ATTACK: ATTACK}}
    results.run.pairs[0].divergence[0]["branch"] = ATTACK
    source = render_report(results, tmp_path)
    page = Page(source)
    assert [script.get("type") for script in page.of("script")] == ["application/json", "application/json", None]
    assert not page.of("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(ATTACK) >= 8
    assert embedded(source, "data")["texts"][0] == ATTACK
    without_scripts = re.sub(r"<script.*?</script>", "", source, flags=re.S)
    assert ATTACK not in without_scripts
    assert html.escape("<script>alert", quote=False) in without_scripts


@pytest.mark.parametrize(
    "hostile", ["</script><script>alert(1)</script>", "<!--<script>", "a\u2028b\u2029c", "&lt;&amp;"]
)
def test_json_inside_the_page_cannot_end_its_script(hostile: str) -> None:
    text = json_for_script({hostile: [hostile]})
    assert not set(text) & set("<>&\u2028\u2029")
    source = f'<script type="application/json" id="data">{text}</script>'
    assert len(Page(source).of("script")) == 1
    assert embedded(source, "data") == {hostile: [hostile]}


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
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/2000/svg", "", source)


def test_every_state_of_a_cell_has_a_place(tmp_path: Path) -> None:
    identical = cell("LLL", is_identical_to_large=True, psnr_db=None, psnr_db_std=None)
    broken = cell("LSS", observed="broken", reasons=["It raised ValueError"], error="Traceback", psnr_db=None)
    stacked = cell("SLL", id="SLL + a", adapters=["a(x=1)"], stacking_efficiency=0.9, surprise="unexpected")
    results = matrix(identical, cell(), broken, stacked, refused("LSL + a + b"), num_planned=9)
    source = render_report(results, tmp_path)
    assert "Interrupted: 5 of 9" in Page(source).text
    data = embedded(source, "data")
    opened = data["cells"]
    assert [one["figures"]["isExact"] for one in opened] == [True, False, False, False, False]
    assert opened[2]["error"] == "Traceback"
    assert opened[3]["surprise"] == "unexpected"
    assert [data["texts"][place] for place in opened[4]["reasons"]] == ["No.", "No!"]
    assert opened[4]["numbers"] == []
    assert opened[4]["figures"]["speed"] == [None, None]


def test_nothing_measured_is_a_page_too(tmp_path: Path) -> None:
    results = matrix(refused("LSL + a"))
    results.run.pairs[0].divergence = []
    page = Page(render_report(results, tmp_path))
    assert "Nothing here could be compared" in page.text
    assert "Where the denoisers disagree" not in page.text


def test_what_was_confirmed_is_what_is_quoted(tmp_path: Path) -> None:
    found = Confirmation(
        num_prompts=24,
        psnr_db=21.4,
        psnr_db_interval=[20.9, 21.9],
        speedup_over_large=1.33,
        speedup_over_large_interval=[1.31, 1.36],
    )
    results = matrix(cell(confirmation=found), cell("LSS", speedup_over_large=2.0))
    pair = results.run.pairs[0]
    assert "LSS is 2.00×" in headline(pair, results.cells).text
    assert "not confirmed on other prompts" in headline(pair, results.cells).text
    pair.headline, pair.front = HeadlineRecord(cell="LSL", dropped=["LSS"]), ["LSL"]
    said = headline(pair, results.cells)
    assert said.text == (
        "LSL is 1.33× (1.31–1.36) as fast as the large denoiser alone, at 21.4 dB PSNR (20.9–21.9) over 24 prompts, "
        "confirmed on prompts and seeds that chose nothing."
    )
    assert "Faster, but not confirmed: LSS." in said.detail
    data = embedded(render_report(results, tmp_path), "data")
    assert data["cells"][0]["figures"]["psnr"] == [21.4, [20.9, 21.9]]
    assert (data["pairs"]["tiny"]["front"], data["pairs"]["tiny"]["isConfirmed"]) == (["LSL"], True)
    assert [one["title"] for one in data["pairs"]["tiny"]["first"]] == ["large only", "LSL", "small only"]
    pair.headline = HeadlineRecord(cell=None, dropped=["LSS"])
    assert "No cell was confirmed" in headline(pair, results.cells).text


def test_a_command_carries_what_the_run_was_asked_for() -> None:
    results = matrix(cell(), command="flowblend matrix run --steps=12 --adapter 'a(x=1)' --early 0.3 --out 'my out'")
    [pair] = results.run.pairs
    assert command_prefix(results.run, pair) == "flowblend run --pair tiny --early 0.3 --steps 12"
    results.run.command = "flowblend matrix run --large './my large' --small s"
    assert command_prefix(results.run, pair) == "flowblend run --large './my large' --small s"


def test_numbers_stand_beside_their_spread_and_the_controls(tmp_path: Path) -> None:
    data = embedded(render_report(matrix(cell(peak_memory_mb=812.3, peak_memory_of="process")), tmp_path), "data")
    one, pair = data["cells"][0], data["pairs"]["tiny"]
    said = dict(zip(data["numbers"], zip(one["numbers"], pair["largeNumbers"], strict=True), strict=True))
    assert said["speed-up over large-only"] == (["1.40×", "1.30–1.50"], ["1.00×", ""])
    assert said["PSNR to large-only, dB"][0] == ["22.0", "± 1.0"]
    assert said["FLOPs, full"] == (["66.0 %", ""], ["2 GFLOPs", ""])
    assert said["forwards computed by L / S"] == (["6 / 2", ""], ["8 / 0", ""])
    assert said["peak memory, MB"][0] == ["812", "of the process"]
    assert len(pair["smallNumbers"]) == len(data["numbers"])


def test_the_timeline_has_a_lane_for_every_denoiser_and_branch() -> None:
    answers = [("L", "early", "compute"), ("L", "early", "reuse"), ("S", "intermediate", "predict"), ("L", "late", "x")]
    rows = [
        {"step_index": i, "denoiser": who, "stage": stage, "outcomes": {"cond": what, "uncond": "compute"}}
        for i, (who, stage, what) in enumerate(answers)
    ]
    found = timeline(cell(timeline=rows))
    assert found.stages == (("early", 2), ("intermediate", 1), ("late", 1))
    assert found.lanes == (
        ("L", "cond", "cr-x"),
        ("L", "uncond", "cc-c"),
        ("S", "cond", "--p-"),
        ("S", "uncond", "--c-"),
    )


def test_a_call_for_every_branch_names_none_and_what_was_seen_once_has_no_spread(tmp_path: Path) -> None:
    unet = cell(speedup_over_large_range=[1.4, 1.4])
    for row in unet.timeline:
        row["outcomes"] = {"unnamed": "compute"}
    source = render_report(matrix(unet, num_repeats=1), tmp_path)
    data = embedded(source, "data")
    assert data["timelines"][0][1] == [["L", "", "c-cc"], ["S", "", "-c--"]]
    assert "1.40–1.40" not in source
    assert data["cells"][0]["numbers"][0] == ["1.40×", ""]


def test_the_full_default_matrix_leaves_room_for_its_videos(tmp_path: Path) -> None:
    """Two pairs, five schedules, some two hundred stacks: what is not a video stays a small part of the 15 MB."""
    pairs = []
    for name in ("videos", "stills"):
        cells = [
            cell(id=f"{schedule} + {stack}", schedule=schedule, pair=name, adapters=stack.split(" + "))
            for stack in (f"solver(num_inference_steps={n}) + cache(threshold={n / 100})" for n in range(210))
            for schedule in ("LLL", "LSL", "LSS", "SLL", "SSS")
        ]
        pairs.append(matrix(*cells, name=name))
    full, stills = pairs
    full.cells += stills.cells
    full.run.pairs += stills.run.pairs
    page = render_report(full, tmp_path)
    assert len(full.cells) == 2100
    assert len(page.encode()) < 3_000_000


def test_what_many_cells_share_is_on_the_page_once(tmp_path: Path) -> None:
    reason = "Both decide the sampler, so keep one of the two."
    many = [refused(f"LSL + a{number}") for number in range(300)]
    for one in many:
        one.reasons = one.declared_reasons = [reason]
    source = render_report(matrix(cell(), *many), tmp_path)
    assert source.count(reason) == 1
    assert len(embedded(source, "data")["timelines"]) == 2


def test_results_survive_their_file() -> None:
    results = matrix(cell(), refused("LSL + a"), families={"a": "feature_caching"})
    assert Matrix.from_dict(results.to_dict()) == results


def test_the_headline_names_the_fastest_cell_within_the_budget() -> None:
    slow = cell("LSS", speedup_over_large=1.2)
    fast_but_bad = cell("SSS", speedup_over_large=5.0, observed="degraded", psnr_db=11.0)
    [pair] = matrix(slow).run.pairs
    assert headline(pair, [slow, cell(), fast_but_bad]).text.startswith("LSL is 1.40× as fast")
    found = headline(pair, [fast_but_bad])
    assert "No cell" in found.text
    assert "SSS" in found.detail
    assert "Broken: LSL." in headline(pair, [cell(observed="broken")]).detail
    many = [cell(id=f"c{number}", observed="broken") for number in range(30)]
    assert headline(pair, many).detail.endswith("Broken: c0, c1, c2, c3, c4 and 25 more.")


def test_pareto_front_against_every_pair_of_points() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.integers(0, 8, size=(40, 2))]
    beaten = {p for p in points for q in points if q != p and q[0] >= p[0] and q[1] >= p[1]}
    assert sorted(pareto_front(points)) == sorted(set(points) - beaten)
