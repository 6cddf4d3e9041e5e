"""``flowblend matrix`` from end to end on a tiny saved pair: what it writes, prints and leaves when interrupted."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from flowblend_compat_matrix.measuring.bench import Bench
from flowblend_compat_matrix.measuring.jobs import PairJob
from flowblend_compat_matrix.measuring.prompts import PromptSet
from flowblend_plugins.cli import run
from flowblend_plugins.errors import UsageError
from flowblend_plugins.files.video import write_png
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline
from tests.processes import bounded_by_progress, output_of, wait_until
from tests.report.samples import embedded


def arguments_for(saved_pair: Path, out: Path) -> list[str]:
    """Arguments of a run that takes seconds."""
    return [
        *("matrix", "run", "--large", str(saved_pair / "large"), "--small", str(saved_pair / "small")),
        *("--prompt", "a <script>alert(1)</script> circle", "--height", "32", "--width", "32", "--num-frames", "9"),
        *("--steps", "5", "--repeats", "1", "--out", str(out)),
    ]


@pytest.fixture
def tiny_run(saved_pair: Path, tmp_path: Path) -> list[str]:
    return arguments_for(saved_pair, tmp_path / "out")


@pytest.fixture(scope="module")
def run_once(saved_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of one cell, and its standard output with --json."""
    out, said = tmp_path_factory.mktemp("lsl") / "out", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run([*arguments_for(saved_pair, out), "--schedule", "LSL", "--json"]) == 0
    return out, said.getvalue()


@pytest.fixture
def finished(run_once: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that folder, for a test to change."""
    return shutil.copytree(run_once[0], tmp_path / "finished")


# Every field that a reader of matrix.json may rely on, and what it is.
NUMBER = (int, float)
CELL_FIELDS: dict[str, Any] = {
    "id": str,
    "pair": str,
    "schedule": str,
    "adapters": list,
    "declared": str,
    "observed": str,
    "reasons": list,
    "speedup_over_large": NUMBER,
    "speedup_over_blend": (*NUMBER, type(None)),
    "stacking_efficiency": (*NUMBER, type(None)),
    "flops_fraction_linear": NUMBER,
    "flops_fraction_full": NUMBER,
    "num_large_forwards": int,
    "num_small_forwards": int,
    "num_reused_forwards": int,
    "psnr_db": (*NUMBER, type(None)),
    "ssim": NUMBER,
}


def test_a_whole_run(flowblend: Callable[..., Any], tiny_run: list[str], tmp_path: Path) -> None:
    result = flowblend(*tiny_run)
    assert result.code == 0, result.err
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["matrix.json", "report.html", "videos"]
    matrix = json.loads((out / "matrix.json").read_text())

    assert matrix["api_version"] == 1
    assert {"python", "torch", "diffusers", "device", "num_threads"} <= matrix["environment"].keys()
    cells = {cell["schedule"]: cell for cell in matrix["cells"]}
    assert list(cells) == ["LLL", "LSL", "LSS", "SLL", "SSS"]
    for cell in cells.values():
        for name, kind in CELL_FIELDS.items():
            assert isinstance(cell[name], kind), f"{name} is {cell[name]!r}"
        assert cell["reasons"], "a verdict without a reason"
        assert cell["is_warm_equal"]
        assert cell["is_teardown_clean"]
    forwards = {name: (c["num_large_forwards"], c["num_small_forwards"]) for name, c in cells.items()}
    assert forwards == {"LLL": (10, 0), "LSL": (6, 4), "LSS": (4, 6), "SLL": (6, 4), "SSS": (0, 10)}
    assert cells["LLL"]["flops_fraction_full"] == 1.0
    assert cells["LLL"]["observed"] == "pass"

    (pair,) = matrix["run"]["pairs"]
    assert {row["branch"] for row in pair["divergence"]} == {"cond", "uncond", "guided"}
    assert len(pair["divergence"]) == 3 * 5

    for cell in cells.values():
        for video in cell["videos"]:
            with av.open(str(out / video)) as container:
                stream = container.streams.video[0]
                assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
                assert sum(1 for _ in container.decode(video=0)) == 9

    html = (out / "report.html").read_text()
    for video in (path for cell in cells.values() for path in cell["videos"]):
        assert base64.b64encode((out / video).read_bytes()).decode() in html, f"{video} is not in the report"
    assert "<script>alert" not in html
    assert "<script>alert(1)" in str(embedded(html, "data")), "the prompt, as the page's script reads it"
    assert str(out / "report.html") in result.out.replace("\n", "")
    assert all(name in result.out for name in cells)


def test_the_report_is_rendered_again_from_the_results(flowblend: Callable[..., Any], finished: Path) -> None:
    path = finished / "report.html"
    first = path.read_text()
    path.unlink()
    result = flowblend("matrix", "report", finished)
    assert result.code == 0, result.err
    assert path.read_text() == first
    assert "LSL" in result.out


def test_json_is_what_was_written(run_once: tuple[Path, str]) -> None:
    out, said = run_once
    assert json.loads(said) == json.loads((out / "matrix.json").read_text())


def test_adapters_are_crossed_with_schedules(
    flowblend: Callable[..., Any], tiny_run: list[str], tmp_path: Path
) -> None:
    without_steps = [text for text in tiny_run if text not in ("--steps", "5")]
    stack = "flow_euler(num_inference_steps=4)"
    result = flowblend(*without_steps, "--schedule", "LSL", "--adapter", stack, "--adapter", "flow_euler + unipc")
    assert result.code == 0, result.err
    cells = json.loads((tmp_path / "out" / "matrix.json").read_text())["cells"]
    assert [(cell["adapters"], cell["observed"] != "refused") for cell in cells] == [
        ([], True),
        ([stack], True),
        (["flow_euler", "unipc"], False),
    ]
    assert cells[1]["speedup_over_stack"] is not None
    assert cells[2]["reasons"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--schedule", "LXQ1"), "LXQ1"),
        (("--schedule", "L:2,S:2,L:2"), "covers 6 steps"),
        (("--adapter", "no_such"), "no_such"),
        (("--adapter", "unipc +"), "--adapter"),
        (("--early", "0.8", "--late", "0.5"), "overlap"),
        (("--prompts", "3"), "--prompts"),
        (("--repeats", "0"), "--repeats"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    flowblend: Callable[..., Any], tiny_run: list[str], tmp_path: Path, extra: tuple[str, ...], said: str
) -> None:
    result = flowblend(*tiny_run, *extra)
    assert result.code == 2
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert said in result.err
    assert not (tmp_path / "out").exists()


def test_large_without_small_is_refused(flowblend: Callable[..., Any], saved_pair: Path, tmp_path: Path) -> None:
    result = flowblend("matrix", "run", "--large", saved_pair / "large", "--prompt", "a", "--out", tmp_path / "out")
    assert result.code == 2
    assert "--small" in result.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ('{"api_version": 2}', "api_version 2"),
        ('{"api_version": 1, "cells": []}', "damaged"),
    ],
)
def test_results_that_cannot_be_read(
    flowblend: Callable[..., Any], tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "matrix.json").write_text(content)
    result = flowblend("matrix", "report", tmp_path)
    assert result.code == 1
    assert said in result.err
    assert not (tmp_path / "report.html").exists()


@bounded_by_progress
@pytest.mark.skipif(os.name != "posix", reason="SIGINT to a child process is POSIX")
def test_an_interruption_keeps_what_is_finished(tiny_run: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    many = [argument for n in range(1, 400) for argument in ("--schedule", f"L>={n / 1000:g},S")]
    process = subprocess.Popen(
        [sys.executable, "-m", "flowblend_plugins.cli", *tiny_run, *many],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(process, (out / "matrix.json").exists)
        process.send_signal(signal.SIGINT)
        _, err = output_of(process)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "cells were finished" in err
    matrix = json.loads((out / "matrix.json").read_text())
    assert 1 <= len(matrix["cells"]) < 399
    assert matrix["cells"][-1]["observed"]
    reported = embedded((out / "report.html").read_text(), "data")["cells"]
    assert [cell["id"] for cell in reported] == [cell["id"] for cell in matrix["cells"]]
    assert not [path for path in out.rglob("*") if path.name.endswith(".partial")]


def test_an_unexpected_cell_fails_the_run_until_an_expectation_says_why(
    flowblend: Callable[..., Any], tiny_run: list[str], tmp_path: Path
) -> None:
    cache = "first_block_cache(threshold=0.0, denoisers='L')"
    out, junit, summary, known = (tmp_path / name for name in ("out", "junit.xml", "summary.md", "known.toml"))
    result = flowblend(*tiny_run, "--schedule", "LSL", "--adapter", cache, "--junit", junit)
    assert result.code == 3, result.err
    assert "1 of 2 cells fail this run (--fail-on unexpected):" in result.err
    assert f"LSL + {cache}: declared composes_with_reset, observed inert, and no expectation says why." in result.err
    assert 'failures="1"' in junit.read_text()
    surprises = [cell["surprise"] for cell in json.loads((out / "matrix.json").read_text())["cells"]]
    assert surprises == [None, "unexpected"]

    # The same results with an expectation, and with one that foresees what did not come.
    report = ("matrix", "report", out, "--expectations", known, "--fail-on", "unexpected", "--summary", summary)
    entry = '[[expectation]]\nadapters = "first_block_cache"\n'
    known.write_text(f'{entry}observed = "inert"\nreason = "It never reuses."\n')
    assert flowblend(*report).code == 0
    assert summary.read_text().startswith("## flowblend matrix: passed")
    known.write_text(f'{entry}observed = "broken"\nreason = "It once broke."\n')
    result = flowblend(*report)
    assert result.code == 3
    assert "It once broke." in result.err
    # Without a gate, a report is a report.
    assert flowblend("matrix", "report", out).code == 0


def test_a_report_of_other_versions_says_what_is_stale(flowblend: Callable[..., Any], finished: Path) -> None:
    path = finished / "matrix.json"
    assert "stale" not in flowblend("matrix", "report", finished).err
    matrix = json.loads(path.read_text())
    installed, matrix["environment"]["torch"] = matrix["environment"]["torch"], "1.0"
    path.write_text(json.dumps(matrix))
    err = flowblend("matrix", "report", finished).err
    assert f"1 of 1 cells are stale: torch was 1.0 and is now {installed}." in err


def test_an_earlier_matrix_in_the_folder_is_told_of_first(
    flowblend: Callable[..., Any], tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "matrix.json").write_text("{}")
    monkeypatch.setattr("flowblend_compat_matrix.running.session.measure_matrix", interrupt)
    result = flowblend(*tiny_run, "--schedule", "LSL")
    assert result.code == 130
    assert "holds an earlier matrix, which this run replaces" in result.err.splitlines()[0]
    assert (tmp_path / "out" / "matrix.json").read_text() == "{}"


def test_an_image_goes_to_pipelines_that_take_one(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    write_png(np.zeros((8, 8, 3)), image)
    job = PairJob(name="p", preset=None, call={"image": str(image)}, early=0.4, late=0.2)
    assert job.arguments()["image"].mode == "RGB"
    with pytest.raises(UsageError, match="WanPipeline does not take --image"):
        Bench(
            load=lambda: (tiny_wan_pipeline(), tiny_wan_denoiser()),
            prompts=PromptSet(("a circle",)),
            call=job.arguments(),
            asked=frozenset({"image"}),
        )
