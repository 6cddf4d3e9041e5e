"""What this package contributes, through the same door as a stranger's plugin."""

from __future__ import annotations

import typer

from flowblend_plugins import Adapter, hookimpl

from .feature_caching.deepcache import AdoptedDeepCache, DeepCache
from .feature_caching.faster_cache import FasterCache
from .feature_caching.first_block_cache import FirstBlockCache
from .feature_caching.mag_cache import MagCache
from .feature_caching.pyramid_attention_broadcast import PyramidAttentionBroadcast
from .feature_caching.sea_cache import SeaCache
from .feature_caching.taylorseer import TaylorSeer
from .feature_caching.teacache.adapter import TeaCache
from .step_reduction.dpmpp_2m import DPMpp2M
from .step_reduction.flow_euler import FlowEuler
from .step_reduction.unipc import UniPC


@hookimpl
def flowblend_register_adapters() -> list[type[Adapter]]:
    return [
        UniPC,
        FlowEuler,
        DPMpp2M,
        FirstBlockCache,
        MagCache,
        SeaCache,
        TaylorSeer,
        PyramidAttentionBroadcast,
        FasterCache,
        TeaCache,
        DeepCache,
        AdoptedDeepCache,
    ]


@hookimpl
def flowblend_register_commands(app: typer.Typer) -> None:
    from .feature_caching.calibrate_commands import calibrate

    app.add_typer(calibrate, name="calibrate")
