"""One of two ranks that compute one pipeline together: python -m tests.ranks.worker RANK FOLDER ADAPTER ORDER PAIR."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

import flowblend_plugins as fb
from flowblend_adapters.feature_caching import ranks
from flowblend_plugins.testing import (
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)

PAIRS = {"wan": (tiny_wan_pipeline, tiny_wan_denoiser), "ltx": (tiny_ltx_pipeline, tiny_ltx_denoiser)}
NEVER, ALWAYS = 0.0, 1e9


def make(pair: str) -> tuple[Any, Any]:
    make_pipe, make_small = PAIRS[pair]
    return make_pipe(), make_small(layers=2, heads=2)


def run(pair: str, adapter: str, threshold: float, order: str) -> tuple[torch.Tensor, list[str]]:
    pipe, small = make(pair)
    if adapter == "enable_cache":
        from diffusers import FirstBlockCacheConfig

        for denoiser in (pipe.transformer, small):
            denoiser.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    adapters = [] if adapter == "enable_cache" else [adapter.format(threshold)]

    def split() -> None:
        for denoiser in (pipe.transformer, small):
            denoiser.set_attention_backend("native")
            denoiser.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))

    if order == "before":
        split()
    with fb.enable(pipe, small, "L:4,S:4,L:2", adapters=adapters) as blend:
        if order == "after":
            split()
        latents = generate(pipe)
        assert blend.trace.last is not None
        return latents, [f"{call.step.denoiser} {call.outcome}" for call in blend.trace.last.calls]


def main() -> None:
    rank, folder, adapter, order, pair = int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers takes the rank modulo this, which is 0 without a GPU
    alone, _ = run(pair, adapter, NEVER, "alone")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    changes: list[tuple[float, float]] = []
    together = ranks.relative_change

    def noted(new: torch.Tensor, old: torch.Tensor, denoiser: Any = None) -> float:
        changes.append((together(new, old), together(new, old, denoiser)))
        return changes[-1][1]

    ranks.relative_change = noted
    split, _ = run(pair, adapter, NEVER, order)
    theirs: list[Any] = [None, None]
    dist.all_gather_object(theirs, changes)
    # A threshold between what the two ranks see of the same call: alone, one would reuse and the other compute.
    gap, threshold = max((abs(a[0] - b[0]), (a[0] + b[0]) / 2) for a, b in zip(*theirs, strict=True))
    latents, outcomes = run(pair, adapter, threshold, order)
    found = {
        "gap": gap,
        "agreed": theirs[0] != [] and [one[1] for one in theirs[0]] == [one[1] for one in theirs[1]],
        "outcomes": outcomes,
        "error_of_splitting": float((split - alone).abs().max()),
        "checksum": latents.double().sum().item(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
