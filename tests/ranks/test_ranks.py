"""Two ranks that compute one pipeline together decide alike, at a threshold on whose sides they would stand alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import ContextParallelConfig, ParallelConfig

import flowblend_plugins as fb
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("adapter", "order", "pair"),
    [
        ("first_block_cache(threshold={})", "before", "wan"),
        ("first_block_cache(threshold={})", "after", "wan"),
        ("enable_cache", "after", "wan"),
    ],
)
def test_two_ranks_decide_alike(adapter: str, order: str, pair: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.ranks.worker"]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path), adapter, order, pair], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    try:
        errors = [worker.communicate(timeout=300)[1].decode()[-3000:] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["gap"] > 1e-4  # the ranks do see different changes
    assert first["agreed"]
    assert first["outcomes"] == second["outcomes"]
    assert first["checksum"] == second["checksum"]
    assert {one.split()[1] for one in first["outcomes"]} == {"compute", "reuse"}
    assert first["error_of_splitting"] < 1e-4


@pytest.mark.parametrize("adapter", ["cache_dit(threshold=0.1)", "teacache"])
def test_a_cache_that_would_decide_on_each_rank_for_itself_is_refused(adapter: str) -> None:
    pipe = tiny_wan_pipeline()
    pipe.transformer._parallel_config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    with pytest.raises(fb.StackError, match="split between ranks"):
        fb.enable(pipe, tiny_wan_denoiser(), adapters=[adapter])
    del pipe.transformer._parallel_config
