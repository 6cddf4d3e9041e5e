"""Plugin with this package's adapters and commands, registered like any third-party plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowblend_plugins import Adapter, hookimpl
from flowblend_plugins.types import Pipeline

from .blending.branch_routing import BranchRouting
from .blending.corrected import Corrected
from .blending.forecast.adapter import Forecast
from .blending.guided_refresh import GuidedRefresh
from .distilled_samplers.distilled import Distilled
from .distilled_samplers.distilled_small import DistilledSmall
from .distilled_samplers.published import CausVid, FastWan, LightX2V, LTXDistilled
from .feature_caching.cache_dit.adapter import CacheDit
from .feature_caching.cache_dit.adopted import AdoptedCacheDit, adopt_cache_dit
from .feature_caching.deepcache.adapter import AdoptedDeepCache, DeepCache, adopt_deepcache
from .feature_caching.diffusers.adopted import AdoptedDiffusersCache, adopt_diffusers_cache
from .feature_caching.diffusers.faster_cache import FasterCache
from .feature_caching.diffusers.first_block_cache import FirstBlockCache
from .feature_caching.diffusers.mag_cache import MagCache
from .feature_caching.diffusers.pyramid_attention_broadcast import PyramidAttentionBroadcast
from .feature_caching.diffusers.sea_cache import SeaCache
from .feature_caching.diffusers.taylorseer import TaylorSeer
from .feature_caching.teacache.adapter import TeaCache
from .feature_caching.teacache.adopted import AdoptedTeaCache, adopt_teacache
from .step_reduction.deis import DEIS
from .step_reduction.dpmpp_2m import DPMpp2M
from .step_reduction.dpmpp_3m import DPMpp3M
from .step_reduction.dpmpp_single import DPMppSingle
from .step_reduction.flow_euler import FlowEuler
from .step_reduction.flow_heun import FlowHeun
from .step_reduction.sa_solver import SASolver
from .step_reduction.unipc import UniPC

if TYPE_CHECKING:  # only the command line needs it
    import typer


@hookimpl
def flowblend_register_adapters() -> list[type[Adapter]]:
    return [
        UniPC,
        DPMpp2M,
        DPMpp3M,
        DPMppSingle,
        FlowEuler,
        FlowHeun,
        DEIS,
        SASolver,
        FirstBlockCache,
        AdoptedDiffusersCache,
        MagCache,
        SeaCache,
        TaylorSeer,
        PyramidAttentionBroadcast,
        FasterCache,
        TeaCache,
        AdoptedTeaCache,
        DeepCache,
        AdoptedDeepCache,
        CacheDit,
        AdoptedCacheDit,
        Distilled,
        DistilledSmall,
        LightX2V,
        CausVid,
        FastWan,
        LTXDistilled,
        Corrected,
        Forecast,
        GuidedRefresh,
        BranchRouting,
    ]


@hookimpl
def flowblend_adopt(pipeline: Pipeline) -> list[Adapter]:
    return [
        *adopt_diffusers_cache(pipeline),
        *adopt_teacache(pipeline),
        *adopt_deepcache(pipeline),
        *adopt_cache_dit(pipeline),
    ]


@hookimpl
def flowblend_register_commands(app: typer.Typer) -> None:
    from .blending.forecast.planning.command import plan
    from .calibrate_commands import add_calibrations

    add_calibrations(app)
    app.command()(plan)
