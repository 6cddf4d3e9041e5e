"""Polynomials and thresholds that the authors of TeaCache published, by model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from flowblend_plugins.types import Denoiser

from .rule import Polynomial

TIME = "time"
PROJECTED_TIME = "projected_time"
MODULATED_INPUT = "modulated_input"


@dataclass(frozen=True)
class Estimate:
    """A polynomial for one signal, and its slow (careful) and fast threshold where they are known."""

    polynomial: Polynomial
    slow: float | None = None
    fast: float | None = None


@dataclass(frozen=True)
class PublishedModel:
    """A model that coefficients were published for.

    Attributes:
        name: as ``coefficients=`` takes it.
        architecture: what its denoiser's class and config say.
        path_mark: what its id says, where another model has the same config.
        estimates: by signal.
    """

    name: str
    architecture: tuple[str, int, int, bool]
    path_mark: str
    estimates: Mapping[str, Estimate]


def architecture_of(denoiser: Denoiser) -> tuple[str, int, int, bool]:
    """Class, inner width, number of layers, and whether images condition it."""
    config = denoiser.config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    # The router gives the denoiser a subclass of the same name.
    return type(denoiser).__name__, width, config["num_layers"], config.get("image_dim") is not None


@cache
def published_models() -> tuple[PublishedModel, ...]:
    wan, ltx = "WanTransformer3DModel", "LTXVideoTransformer3DModel"
    fit = Polynomial.on_its_positive_domain
    return (
        PublishedModel(
            "wan_t2v_1_3b",
            (wan, 1536, 30, False),
            "",
            {
                PROJECTED_TIME: Estimate(
                    fit(-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02), 0.05, 0.10
                ),
                TIME: Estimate(
                    fit(2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01), 0.05, 0.08
                ),
            },
        ),
        PublishedModel(
            "wan_t2v_14b",
            (wan, 5120, 40, False),
            "",
            {
                PROJECTED_TIME: Estimate(
                    fit(-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01), 0.10, 0.20
                ),
                TIME: Estimate(
                    fit(-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404), 0.14, 0.20
                ),
            },
        ),
        PublishedModel(
            "wan_i2v_14b_480p",
            (wan, 5120, 40, True),
            "480p",
            {
                PROJECTED_TIME: Estimate(
                    fit(2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01)
                ),
                TIME: Estimate(fit(-3.02331670e02, 2.23948934e02, -5.25463970e01, 5.87348440e00, -2.01973289e-01)),
            },
        ),
        PublishedModel(
            "wan_i2v_14b_720p",
            (wan, 5120, 40, True),
            "720p",
            {
                PROJECTED_TIME: Estimate(
                    fit(8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02)
                ),
                TIME: Estimate(fit(-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683)),
            },
        ),
        PublishedModel(
            "ltx_2b",
            (ltx, 2048, 28, False),
            "",
            {
                MODULATED_INPUT: Estimate(
                    fit(2.14700694e01, -1.28016453e01, 2.31279151e00, 7.92487521e-01, 9.69274326e-03), 0.03, 0.05
                ),
            },
        ),
    )


def published_for(denoiser: Denoiser) -> tuple[PublishedModel, ...]:
    """The published models this denoiser may be: one, none, or several that only differ in their weights."""
    found = tuple(model for model in published_models() if model.architecture == architecture_of(denoiser))
    path = str(denoiser.config.get("_name_or_path", "")).lower()
    marked = tuple(model for model in found if model.path_mark and model.path_mark in path)
    return marked if len(found) > 1 and len(marked) == 1 else found
