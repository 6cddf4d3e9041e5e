"""Every cache that an adapter puts on a denoiser, with options under which it reuses on the tiny pipelines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from flowblend_adapters.feature_caching.teacache.fits import Fit
from flowblend_adapters.feature_caching.teacache.published import MODULATED_INPUT, PROJECTED_TIME
from flowblend_plugins.testing import tiny_ltx_denoiser, tiny_ltx_pipeline, tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.feature_caching.test_mag_cache import write_ratios
from tests.adapters.feature_caching.test_teacache import fit_for, fits_for_tiny_denoisers
from tests.exactness.pipelines import FAMILIES, STABLE_DIFFUSION, Family, masked_text, text

SIZE = {"height": 32, "width": 32, "num_frames": 9}
WAN = Family("wan", tiny_wan_pipeline, lambda: tiny_wan_denoiser(layers=2), lambda b: text(b, 16) | SIZE, ())
LTX = Family("ltx", tiny_ltx_pipeline, lambda: tiny_ltx_denoiser(layers=2), lambda b: masked_text(b, 16) | SIZE, ())
STEPS = 8


@dataclass(frozen=True)
class Cache:
    """An adapter, the family it is tried on, and what its calls need."""

    spec: str
    family: Family = WAN
    call: dict[str, Any] = field(default_factory=dict)

    def run(self, pipe: Any, **overrides: Any) -> Any:
        return self.family.run(pipe, STEPS, **(self.call | overrides))

    def sharing(self, denoiser: nn.Module) -> Any:
        """Another pipeline, on this very denoiser."""
        other = self.family.pipe()
        setattr(other, self.family.slot, denoiser)
        return other


_UNGUIDED = {"guidance_scale": 1.0}
CACHES = {
    "first_block_cache": Cache("first_block_cache(threshold=10.0)"),
    "first_block_cache on LTX": Cache("first_block_cache(threshold=10.0)", LTX),
    "sea_cache": Cache("sea_cache(threshold=5.0)"),
    "mag_cache": Cache("mag_cache(ratios='RATIOS', threshold=0.3)"),
    "taylorseer": Cache("taylorseer(cache_interval=2, warmup_steps=2)"),
    "pyramid_attention_broadcast": Cache("pyramid_attention_broadcast(timestep_range=(-1, 1001))", call=_UNGUIDED),
    "faster_cache": Cache("faster_cache(attention_timestep_range=(-1, 1001), warmup_steps=1)", call=_UNGUIDED),
    "teacache": Cache("teacache(threshold=0.65)"),
    "teacache on LTX": Cache("teacache(threshold=0.15)", LTX),
    "cache_dit": Cache("cache_dit(threshold=10.0)"),
    "deepcache": Cache("deepcache(interval=3)", STABLE_DIFFUSION),
}


def known_fits() -> tuple[Fit, ...]:
    """Coefficients of TeaCache for all tiny denoisers here."""
    further = fit_for(WAN.make_small(), PROJECTED_TIME), fit_for(LTX.make_small(), MODULATED_INPUT)
    return (*fits_for_tiny_denoisers(), *further)


def measured_ratios(path: Any) -> str:
    """A file of MagCache's ratios for the tiny Wan denoisers."""
    return write_ratios(path, L=FAMILIES["wan"].pipe().transformer, S=WAN.make_small())
