"""The cookbook's distribution, built, installed and tested in processes of their own, as its reader would."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cookbook.md").read_text()
FILES = dict(
    zip(
        ("flowblend_reuse.py", "test_reuse.py", "pyproject.toml"),
        re.findall(r"^```(?:python|toml)\n(.*?)^```", PAGE, re.M | re.S),
        strict=True,
    )
)


def python(*arguments: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    # A test run in a worker process of pytest-xdist is not one itself: its benchmarks are to be run.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=cwd)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cookbook")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its wheel's content; the tests stay in the source folder, so it is the installed one that they import."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    built = python("-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, source, cwd=wheels)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = wheels.glob("*.whl")
    done = python("-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", target, wheel, cwd=wheels)
    assert done.returncode == 0, done.stderr
    return target


def test_the_adapter_takes_less_than_60_lines() -> None:
    written = [line for line in FILES["flowblend_reuse.py"].splitlines() if line.strip()]
    assert len(written) < 60
    (contract,) = [node for node in ast.parse(FILES["test_reuse.py"]).body if isinstance(node, ast.ClassDef)]
    assert (contract.end_lineno or 0) - contract.lineno < 20


def test_its_own_tests_pass_with_every_promise_the_verdict_and_the_benchmark(source: Path, installed: Path) -> None:
    report = source / "benchmark.json"
    ran = python(
        "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", f"--benchmark-json={report}", "test_reuse.py",
        cwd=source, path=installed,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = set(re.findall(r"^PASSED .*::(test_\w+)", ran.stdout, re.M))
    from flowblend_compat_matrix.testing.contract import EmbeddedPairContract

    assert passed == {name for name in dir(EmbeddedPairContract) if name.startswith("test_")}
    (measured,) = json.loads(report.read_text())["benchmarks"]
    # Every other velocity is free, and a part of the others is the small denoiser's.
    low, high = measured["extra_info"]["speedup_over_large_range"]
    assert low <= measured["extra_info"]["speedup_over_large_median"] <= high
    assert measured["extra_info"]["speedup_over_large_median"] > 1.0


def test_the_matrix_takes_it_up_with_its_family(source: Path, installed: Path) -> None:
    code = (
        "from flowblend_compat_matrix.running.planning import suggested_stacks\n"
        "from flowblend_plugins.manager import make_plugin_manager\n"
        "from flowblend_plugins.contract.traits import Family\n"
        "print(suggested_stacks(make_plugin_manager(), Family.FEATURE_CACHING))"
    )
    assert "reuse_velocity(every=2)" in python("-c", code, cwd=source, path=installed).stdout
    assert "reuse_velocity" not in python("-c", code, cwd=source).stdout
