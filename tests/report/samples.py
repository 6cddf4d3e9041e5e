"""Matrices that no run was needed for, and the page as a browser takes it apart."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from typing import Any

from flowblend_compat_matrix.results.matrix_results import BaselineResult, CellResult, Matrix, PairRecord, RunRecord

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
        "large_only": BaselineResult(latency_ms=1000.0, linear_flops=10**9, full_flops=2 * 10**9, num_forwards=8),
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
    of_the_run = {field.name for field in dataclasses.fields(RunRecord)}
    for name, value in run.items():
        (record if name in of_the_run else pair)["name" if name == "pair" else name] = value
    record["pairs"] = [PairRecord(**pair, divergence=divergence)]
    return Matrix(environment=environment, run=RunRecord(**record), cells=list(cells))


def embedded(source: str, name: str) -> Any:
    """What the page's script reads from one of its two blocks of JSON."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', source, re.S)
    assert found is not None
    return json.loads(found[1])
