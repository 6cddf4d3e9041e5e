"""What makes a run fail, and how a CI server and a person are told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer

from flowblend_compat_matrix.report.gate import FailOn, conclude, find_failures
from flowblend_compat_matrix.report.gate_files import junit_xml, summary_markdown
from flowblend_compat_matrix.results.matrix_results import CellResult, Matrix, RunRecord


def cell(name: str, observed: str, **changes: Any) -> CellResult:
    values: dict[str, Any] = {"pair": "tiny", "schedule": "LSL", "adapters": [], "declared": "composes"} | changes
    return CellResult(id=name, observed=observed, reasons=[f"why {name}"], seconds=1.5, **values)


@pytest.fixture
def matrix() -> Matrix:
    run = RunRecord(
        command="flowblend matrix run",
        pairs=[],
        schedules=["LSL"],
        stacks=[],
        depth=1,
        num_repeats=1,
        budget={},
        num_planned=9,
        executor="1 local worker process",
        is_sharing=True,
    )
    cells = [
        cell("good", "pass", speedup_over_large=1.4, psnr_db=22.0, ssim=0.8),
        cell("worse", "degraded"),
        cell("worse, known", "degraded", expectation="known"),
        cell("fallen", "broken", surprise="unexpected", error="Traceback"),
        cell("fallen, known", "broken", expectation="known"),
        cell("odd", "inert", surprise="unexpected"),
        cell("mended", "pass", surprise="stale_expectation", expectation="it once broke"),
        cell("no", "refused", declared="refused"),
        cell("absent", "skipped", pair="other"),
    ]
    return Matrix(environment={"torch": "2.13", "diffusers": "0.42", "device": "a <cpu>"}, run=run, cells=cells)


@pytest.mark.parametrize(
    ("fail_on", "failing"),
    [
        ([], []),
        (["unexpected"], ["fallen", "odd", "mended"]),
        # What is foreseen is no failure.
        (["broken"], ["fallen"]),
        (["degraded"], ["worse"]),
        (["degraded", "unexpected"], ["worse", "fallen", "odd", "mended"]),
    ],
)
def test_what_fails(matrix: Matrix, fail_on: list[str], failing: list[str]) -> None:
    assert [failure.cell.id for failure in find_failures(matrix, [FailOn(one) for one in fail_on])] == failing


def test_each_failure_says_what_is_wrong(matrix: Matrix) -> None:
    said = {failure.cell.id: failure.what for failure in find_failures(matrix, list(FailOn))}
    assert said["odd"] == "declared composes, observed inert, and no expectation says why. why odd"
    assert said["mended"] == 'observed pass, but an expectation foresaw otherwise: "it once broke" why mended'
    assert said["worse"] == "why worse"


def test_the_command_ends_with_code_3_and_a_list(matrix: Matrix, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        conclude(matrix, [FailOn.UNEXPECTED], None, None)
    assert ended.value.exit_code == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "3 of 9 cells fail this run (--fail-on unexpected):"
    assert [line.split(": ")[1] for line in lines[1:]] == ["fallen", "odd", "mended"]
    conclude(matrix, [], None, None)
    assert capsys.readouterr().err == ""


def test_junit(matrix: Matrix) -> None:
    matrix.cells[3].reasons = ["<boom> & \x00\x1b[31m"]
    root = ElementTree.fromstring(junit_xml(matrix, find_failures(matrix, [FailOn.UNEXPECTED])))
    tiny, other = root.findall("testsuite")
    assert tiny.attrib == {
        "name": "tiny", "tests": "8", "failures": "3", "errors": "0", "skipped": "1", "time": "12.000"
    }  # fmt: skip
    assert (other.get("name"), other.get("skipped")) == ("other", "1")
    cases = {case.get("name"): case for case in root.iter("testcase")}
    failure = cases["fallen"].find("failure")
    assert failure is not None
    assert failure.get("type") == "unexpected"
    assert "<boom> & \ufffd\ufffd[31m" in (failure.get("message") or "")
    assert failure.text == "Traceback"
    assert cases["no"].find("skipped") is not None
    assert cases["good"].find("failure") is None
    assert cases["good"].findtext("system-out") == "pass: why good"


def test_summary_is_markdown_that_nobody_can_break_out_of(matrix: Matrix) -> None:
    matrix.cells[5].id = "odd | `x` <script>alert(1)</script> @somebody [a](b)\n# head"
    text = summary_markdown(matrix, find_failures(matrix, [FailOn.UNEXPECTED]))
    assert text.startswith("## flowblend matrix: failed, 9 of 9 cells\n")
    assert "| tiny | 2 | 2 | 1 | 1 | 2 | 0 | 3 |" in text
    assert "### What failed (3)" in text
    assert "| tiny | good | 1.40x | 22.0 dB | 0.800 |" in text
    assert "<script>" not in text
    assert not re.search(r"(?<!\\)[`@\[]", text), "every sign that Markdown heeds is escaped"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    heads = [line for line in rows if "---" in line]
    assert len(heads) == 3
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (9, 5, 6) for row in rows), "no cell of a table ends early"
    assert "passed" in summary_markdown(matrix, []).splitlines()[0]


def test_github_gets_its_page_beside_the_files(matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "step.md"
    page.write_text("earlier\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    conclude(matrix, [], tmp_path / "junit.xml", tmp_path / "summary.md")
    summary = (tmp_path / "summary.md").read_text()
    assert page.read_text() == "earlier\n" + summary
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().tag == "testsuites"
