"""The outcome of a run for continuous integration: JUnit XML, and a summary in GitHub's Markdown."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from flowblend_plugins.errors import OutputError
from flowblend_plugins.files.writing import write_text_atomically

from ..results.matrix_results import CellResult, Matrix
from .gate import Failure
from .markdown_table import escape, table

_MANY = 50
"""Rows that a person reads."""

# What XML 1.0 cannot hold, not even escaped.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(matrix: Matrix, failures: Sequence[Failure]) -> str:
    """A test suite for each pair, a test case for each cell; refused and skipped cells are skipped tests."""
    failed = {id(failure.cell): failure for failure in failures}
    root = ElementTree.Element("testsuites", name="flowblend matrix")
    for pair in dict.fromkeys(cell.pair for cell in matrix.cells):
        cells = [cell for cell in matrix.cells if cell.pair == pair]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_clean(pair),
            tests=str(len(cells)),
            failures=str(sum(id(cell) in failed for cell in cells)),
            errors="0",
            skipped=str(sum(_is_skipped(cell) and id(cell) not in failed for cell in cells)),
            time=f"{sum(cell.seconds or 0.0 for cell in cells):.3f}",
        )
        for cell in cells:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=_clean(f"{pair}.{cell.schedule}"),
                name=_clean(cell.id),
                time=f"{cell.seconds or 0.0:.3f}",
            )
            reasons = _clean(" ".join(cell.reasons))
            if failure := failed.get(id(cell)):
                kind, message = failure.kind, _clean(failure.what)
                ElementTree.SubElement(case, "failure", type=kind, message=message).text = _clean(cell.error or "")
            elif _is_skipped(cell):
                ElementTree.SubElement(case, "skipped", message=f"{cell.observed}: {reasons}")
            else:
                ElementTree.SubElement(case, "system-out").text = f"{cell.observed}: {reasons}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _is_skipped(cell: CellResult) -> bool:
    return cell.observed in ("refused", "skipped")


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)


def summary_markdown(matrix: Matrix, failures: Sequence[Failure]) -> str:
    """Verdicts counted by pair, what failed, and the fastest cells that pass."""
    verdict = "failed" if failures else "passed"
    lines = [f"## flowblend matrix: {verdict}, {len(matrix.cells)} of {matrix.run.num_planned} cells", ""]
    names = [name for name in ("pass", "degraded", "inert", "refused", "broken", "skipped") if _num(matrix, name)]
    lines += table(
        ["pair", *names, "unexpected"],
        [
            [
                pair,
                *(str(_num(matrix, name, pair)) for name in names),
                str(sum(cell.surprise is not None for cell in matrix.cells if cell.pair == pair)),
            ]
            for pair in dict.fromkeys(cell.pair for cell in matrix.cells)
        ],
    )
    if failures:
        lines += [f"### What failed ({len(failures)})", ""]
        rows = [[one.cell.pair, one.cell.id, one.kind.replace("_", " "), one.what] for one in failures[:_MANY]]
        lines += table(["pair", "cell", "kind", "what"], rows)
        if len(failures) > _MANY:
            lines += [f"and {len(failures) - _MANY} more, in matrix.json.", ""]
    fastest = sorted(
        (cell for cell in matrix.cells if cell.observed == "pass" and cell.speedup_over_large is not None),
        key=lambda cell: -(cell.speedup_over_large or 0.0),
    )[:10]
    if fastest:
        lines += ["### The fastest within the budget", ""]
        rows = [
            [
                cell.pair,
                cell.id,
                f"{cell.speedup_over_large:.2f}x",
                "identical" if cell.psnr_db is None else f"{cell.psnr_db:.1f} dB",
                "" if cell.ssim is None else f"{cell.ssim:.3f}",
            ]
            for cell in fastest
        ]
        lines += table(["pair", "cell", "speed-up", "PSNR", "SSIM"], rows)
    versions = ", ".join(f"{name} {matrix.environment.get(name, '?')}" for name in ("torch", "diffusers"))
    lines += [f"{versions}; {escape(str(matrix.environment.get('device', '?')))}", ""]
    return "\n".join(lines)


def _num(matrix: Matrix, observed: str, pair: str | None = None) -> int:
    return Counter(cell.observed for cell in matrix.cells if pair in (None, cell.pair))[observed]


def write_gate_files(
    matrix: Matrix, failures: Sequence[Failure], junit: Path | None = None, summary: Path | None = None
) -> None:
    """Write what was asked for; where GitHub runs this (``GITHUB_STEP_SUMMARY``), its page gets the summary too.

    Raises:
        OutputError: a file cannot be written.
    """
    if junit is not None:
        write_text_atomically(junit, junit_xml(matrix, failures))
    text = summary_markdown(matrix, failures)
    if summary is not None:
        write_text_atomically(summary, text)
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(step).open("a", encoding="utf-8") as file:  # other steps write there too
                file.write(text)
        except OSError as error:
            raise OutputError(f"GITHUB_STEP_SUMMARY={step} cannot be written: {error.strerror or error}.") from error
