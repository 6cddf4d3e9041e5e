"""The house rules that a machine can hold: one-way imports, honest docs, nothing of one machine in the tree."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of what belongs to the project")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_imports_run_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


def test_ruff_is_clean() -> None:
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "."], ["format", "--check", "."]):
        result = subprocess.run([ruff, *command], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_every_docs_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {p.name for p in (ROOT / "docs").glob("*.md")} - {"index.md"}
    missing = sorted(page for page in pages if f"({page})" not in index)
    assert not missing, f"docs/index.md does not mention {missing}"


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    mentioned = set(re.findall(r"\bmake ([a-z][a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= mentioned
    assert mentioned <= targets


def test_nothing_of_one_machine_and_no_pickle_is_tracked() -> None:
    # Spelt in pieces, so that this file does not find itself.
    forbidden = re.compile("|".join(["/wo" + "rk/", "/ro" + "ot/", "site-" + "packages/", r"\.\./sha" + "red"]))
    for path in tracked_files():
        assert path.suffix not in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}, f"{path.name}: weights are safetensors only"
        if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".jinja", ".html", ".yml", ""}:
            found = forbidden.search(path.read_text(errors="ignore"))
            assert not found, f"{path.relative_to(ROOT)} names {found and found.group()}"


def test_tracked_weights_stay_small() -> None:
    """What ships stays below 32 MB; checkpoints of training, which do not ship, below the 24 MB of a whole pair."""
    weights = [p for p in tracked_files() if p.suffix == ".safetensors"]
    checkpoints = [p for p in weights if "checkpoints" in p.parts]
    assert sum(p.stat().st_size for p in checkpoints) < 24e6
    assert sum(p.stat().st_size for p in weights if p not in checkpoints) < 32e6


def test_docstrings_open_with_a_plain_sentence() -> None:
    counts = ROOT / "tests" / "house" / "counts.py"
    listed = subprocess.run([sys.executable, counts, "-v"], cwd=ROOT, capture_output=True, text=True).stdout
    bad = [line for line in listed.splitlines() if re.search(r"opens with '|has fewer than", line)]
    assert not bad, "\n".join(bad)


def test_the_architecture_page_shows_the_layers_and_imports_that_there_are() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "update_architecture.py"))
    page = made["PAGE"].read_text()
    assert made["page_with_drawings"](page) == page, "run: python docs/update_architecture.py"
    assert set(re.findall(r"<!-- layers of (\w+) -->", page)) == {*made["layers"]()}


def test_adapters_import_what_runs_a_pipeline_by_its_module_so_that_the_contract_sees_it() -> None:
    lazy = {"enable", "Blend", "Trace"}  # what the root of the core imports only when it is asked for
    for path in (ROOT / "adapters").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "flowblend_plugins":
                taken = sorted(lazy & {alias.name for alias in node.names})
                assert not taken, f"{path.relative_to(ROOT)}: import {taken} from .api, .blend or .trace"
