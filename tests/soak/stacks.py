"""Random stacks of adapters for a family of tiny pipelines; some of them are refused, which has to leave no trace."""

from __future__ import annotations

import random

from flowblend_adapters.feature_caching.teacache import estimates
from tests.exactness.pipelines import FAMILIES, STABLE_DIFFUSION, Family
from tests.sharing.caches import LTX, WAN, known_fits

SOLVERS = (
    "unipc", "dpmpp_2m", "dpmpp_3m", "dpmpp_single", "deis", "flow_euler", "flow_heun",
    "unipc(reset_solver_history_at_switch=True)", "dpmpp_2m(num_inference_steps=4)",
)  # fmt: skip
BLENDING = (
    "corrected", "guided_refresh", "forecast", "branch_routing",
)  # fmt: skip
CACHES = (
    "first_block_cache(threshold=0.3)", "first_block_cache(threshold=10.0, warmup_steps=1)",
    "first_block_cache(threshold=0.5, denoisers='L')", "sea_cache(threshold=1.0)",
    "sea_cache(threshold=5.0, denoisers='S')",
    "taylorseer(cache_interval=2, warmup_steps=2)", "teacache(threshold=0.5)", "teacache(threshold=0.3, denoisers='L')",
    "cache_dit(threshold=0.5)", "cache_dit(threshold=10.0, denoisers='L')",
    "pyramid_attention_broadcast(timestep_range=(-1, 1001))",
    "faster_cache(attention_timestep_range=(-1, 1001), warmup_steps=1)",
)  # fmt: skip
UNET_CACHES = ("deepcache(interval=2)", "deepcache(interval=3, denoisers='L')")
SCHEDULES = ("LLL", "SSS", "LSL", "SLL", "LSS", "SSL", "L:2,S:1,L:2", "S:1,L:3,S:1")

WORLDS: tuple[Family, ...] = (WAN, LTX, FAMILIES["wan"], FAMILIES["wan-i2v"], FAMILIES["cogvideox"], STABLE_DIFFUSION)


def random_stack(choose: random.Random, family: Family) -> tuple[str, ...]:
    """None to three adapters, each of another kind as often as not."""
    caches = UNET_CACHES if family.slot == "unet" else CACHES
    count = choose.choice((0, 1, 2, 2, 3, 3))
    kinds = choose.sample((caches, SOLVERS, BLENDING, caches), count)
    return tuple(choose.choice(kind) for kind in kinds)


def know_tiny_denoisers() -> None:
    """Let TeaCache find coefficients for the random denoisers, as a calibration would."""
    fits = known_fits()
    estimates.shipped_fits = lambda: fits
