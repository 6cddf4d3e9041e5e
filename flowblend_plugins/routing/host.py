"""Class of a denoiser that the pipeline calls, while it is routed: its own class, but that it asks the router."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NoReturn

from torch import nn

from ..errors import RoutingError
from ..pipelines.stand_in import stand_in
from ..types import Denoiser, Keywords, Output

if TYPE_CHECKING:
    from .router import ModelRouter


def routed_class(base: type, router: ModelRouter) -> type:
    """A class in the place of ``base`` that asks the router."""

    def __call__(self: nn.Module, *args: object, **kwargs: object) -> Output:
        return router.call(self, args, kwargs)

    def cache_context(self: nn.Module, name: str, **kwargs: object) -> AbstractContextManager[object]:
        return router.cache_context(self, name, kwargs)

    def _reset_stateful_cache(self: nn.Module, recurse: bool = True) -> None:
        router.reset_stateful_cache(self, recurse)

    def __new__(cls: type, *args: object, **kwargs: object) -> object:
        return base(*args, **kwargs)  # type(denoiser)(...) and type(denoiser).from_pretrained(...) make plain ones

    def __reduce_ex__(self: nn.Module, protocol: object) -> NoReturn:
        raise RoutingError(
            f"{base.__name__} cannot be pickled or deep-copied while FlowBlending is enabled on it. "
            "Call disable() first, or use save_pretrained()."
        )

    namespace: Keywords = {
        "__new__": __new__,
        "__call__": __call__,
        "__reduce_ex__": __reduce_ex__,
        "_flowblend_router": router,
    }
    if hasattr(base, "cache_context"):
        namespace |= {"cache_context": cache_context, "_reset_stateful_cache": _reset_stateful_cache}
    return stand_in(base, namespace)


def router_of(denoiser: Denoiser) -> ModelRouter | None:
    """The router that a denoiser is a host of, if any."""
    return getattr(type(denoiser), "_flowblend_router", None)
