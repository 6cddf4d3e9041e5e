"""Control scales fitted to denoisers with another number of control layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from ..errors import RoutingError
from ..types import Args, Keywords

_SCALE = "control_hidden_states_scale"


@contextlib.contextmanager
def control_scales_fitted(large: nn.Module, further: Iterable[nn.Module]) -> Iterator[None]:
    """Let VACE denoisers with another number of control layers take the pipeline's control scales.

    ``WanVACEPipeline`` makes one scale for each control layer of the large denoiser (8 in Wan 2.1's 14B, 15 in its
    1.3B). Where all are alike, as one ``conditioning_scale`` makes them, another number of them means the same.
    """
    handles = [
        denoiser.register_forward_pre_hook(_fit_control_scales, with_kwargs=True)
        for denoiser in further
        if _num_control_layers(denoiser) not in (None, _num_control_layers(large))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _num_control_layers(denoiser: nn.Module) -> int | None:
    layers = getattr(denoiser, "config", {}).get("vace_layers")
    return None if layers is None else len(layers)


def _fit_control_scales(denoiser: nn.Module, args: Args, kwargs: Keywords) -> tuple[Args, Keywords]:
    scale, count = kwargs.get(_SCALE), _num_control_layers(denoiser)
    if scale is None or count is None:
        return args, kwargs
    if not bool((scale == scale[0]).all()):
        raise RoutingError(
            f"conditioning_scale has {len(scale)} values that differ, one for each control layer of the large "
            f"denoiser, but this denoiser has {count} control layers. Pass one number for all layers."
        )
    return args, kwargs | {_SCALE: scale[:1].expand(count)}
