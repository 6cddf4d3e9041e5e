"""The wheel, installed without any extra: it enables a pipeline, and says in one line what brings the rest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES_OF_EXTRAS = (
    "typer",
    "av",
    "jinja2",
    "matplotlib",
    "skimage",
    "scipy",
    "DeepCache",
    "peft",
    "cache_dit",
    "ray",
)

# The packages of the extras lie beside the mandatory ones in the environment of the tests, so they are hidden.
HIDE_EXTRAS = f"""
import importlib.machinery, sys
class WithoutExtras(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {MODULES_OF_EXTRAS} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutExtras
"""

ENABLE = """
import flowblend_plugins as fb
from flowblend_plugins.testing import generate, tiny_wan_denoiser, tiny_wan_pipeline
pipe = tiny_wan_pipeline()
plain = generate(pipe, num_inference_steps=4)
with fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=["unipc", "first_block_cache(denoisers='L')"]) as blend:
    generate(pipe, num_inference_steps=4)
assert blend.trace.last.num_forwards("S", "compute") > 0
assert blend.trace.summary()
assert generate(pipe, num_inference_steps=4).equal(plain)
for adapter in ("cache_dit", "deepcache"):
    try:
        fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=[adapter])
    except fb.FlowBlendError as error:
        print(error)
print("enabled")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, and a start-up file that hides what only extras bring."""
    folder = tmp_path_factory.mktemp("bare")
    zipfile.ZipFile(wheel).extractall(folder)
    (folder / "sitecustomize.py").write_text(HIDE_EXTRAS)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)


def test_at_most_nine_packages_are_mandatory(wheel: Path) -> None:
    metadata = zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA")))
    required = re.findall(r"^Requires-Dist: ([\w.-]+)(?!.*extra ==)[^\n]*$", metadata.decode(), re.M)
    assert len(required) <= 9, required


def test_research_stays_out_of_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith(("flowblend_research", "tests"))]
    assert any(name.endswith(".safetensors") for name in names), "the embedded pair is part of the package"


def test_a_bare_install_enables_a_pipeline_and_names_the_extra_of_the_rest(bare: Path) -> None:
    ran = python(bare, "-c", ENABLE)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[-1] == "enabled"
    assert 'the package cache-dit is not installed. Run: pip install "flowblend-plugins[cache-dit]"' in ran.stdout
    assert 'the package DeepCache is not installed. Run: pip install "flowblend-plugins[deepcache]"' in ran.stdout


def test_a_bare_install_names_the_extra_of_the_command_line(bare: Path) -> None:
    ran = python(bare, "-m", "flowblend_plugins.cli", "doctor")
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        'flowblend: this needs the package typer, which is not installed. Run: pip install "flowblend-plugins[cli]"'
    ]


@pytest.mark.skipif("FLOWBLEND_TEST_INSTALL" not in os.environ, reason="downloads packages: run `make test-install`")
def test_the_wheel_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    interpreter = tmp_path / "env" / "bin" / "python"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    installed = subprocess.run(
        [interpreter, "-m", "pip", "install", "--quiet", *constraints, str(wheel)], capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    for module in set(MODULES_OF_EXTRAS) - {"typer", "jinja2", "scipy"}:  # transformers and torch may bring those
        absent = subprocess.run([interpreter, "-c", f"import {module}"], cwd=tmp_path, capture_output=True)
        assert absent.returncode, f"{module} came along, but only an extra should bring it"
    ran = subprocess.run([interpreter, "-c", ENABLE], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "enabled"
