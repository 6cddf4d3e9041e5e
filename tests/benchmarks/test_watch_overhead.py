"""What comparing a pipeline with how it stood costs a generation, on denoisers as deep as the real ones."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, WanTransformer3DModel

from flowblend_plugins.manager import adapters_by_name, make_plugin_manager
from flowblend_plugins.pipelines.standing import Watch
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline

WALKS = 0.1
"""The comparison may take a tenth of what one look at every module takes: a bound that holds on any processor."""

MARKS = {mark for adapter in adapters_by_name(make_plugin_manager()).values() for mark in adapter.traits.sets}


def wan(layers: int) -> Any:
    """As many modules as a Wan 2.1 has (40 layers in its 14B, 30 in its 1.3B), without weights."""
    with torch.device("meta"):
        return WanTransformer3DModel(num_layers=layers, num_attention_heads=1, attention_head_dim=12, ffn_dim=12)


@pytest.mark.parametrize("size", ["tiny", "of real depth", "of real depth, cached"])
def test_the_comparison_costs_little_beside_a_look_at_every_module(size: str) -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    if size != "tiny":
        pipe.transformer, small = wan(40), wan(30)
    if size.endswith("cached"):
        pipe.transformer.enable_cache(FirstBlockCacheConfig())
    watch = Watch(pipe, {"L": pipe.transformer, "S": small}, MARKS)
    assert not watch.changes()
    comparing = microseconds(lambda: bool(watch.changes()))
    walking = microseconds(lambda: [module for one in (pipe.transformer, small) for module in one.modules()])
    # The best of many is what it takes by itself; the median also has what else runs on this machine.
    best, median = min(comparing), statistics.median(comparing)
    print(f"{size}: best {best:.1f} us, median {median:.1f} us of {len(comparing)}; all modules: {min(walking):.1f} us")
    if size != "tiny":
        assert best < WALKS * min(walking)


def microseconds(what: Callable[[], object], repeats: int = 100) -> list[float]:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        what()
        times.append(1e6 * (time.perf_counter() - started))
    return times
