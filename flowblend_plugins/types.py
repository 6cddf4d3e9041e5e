"""Types of the diffusers objects that pass through this package, and of values that are named rather than typed.

diffusers sets a pipeline's components and a denoiser's config at run time, so a type checker knows none of them. The
protocols say which kind of object is meant and leave its attributes open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias


class _OpenAttributes(Protocol):
    """An object of diffusers whose attributes are set at run time."""

    def __getattr__(self, name: str, /) -> Any: ...

    def __setattr__(self, name: str, value: Any, /) -> None: ...

    def __delattr__(self, name: str, /) -> None: ...


class Pipeline(_OpenAttributes, Protocol):
    """A diffusers pipeline: it is called with a prompt, and its components are attributes.

    Those that this package reads: ``transformer`` or ``unet`` (the denoiser), ``scheduler``, ``vae``, ``config``.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class Denoiser(_OpenAttributes, Protocol):
    """A denoiser of diffusers (a ``ModelMixin``): called with latents and a timestep, it predicts noise or velocity.

    It is a ``torch.nn.Module`` with a ``config`` and a ``dtype``.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class DiffusersClass(_OpenAttributes, Protocol):
    """A class of diffusers, a denoiser's, a pipeline's or a scheduler's, with what it has at run time."""

    __name__: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class Foreign(_OpenAttributes, Protocol):
    """An object of a library that declares no types for it: a cache's hook, context, state or config."""


class Scheduler(_OpenAttributes, Protocol):
    """A scheduler of diffusers, which samples: ``set_timesteps``, ``step``, ``timesteps``, ``config``."""


Output: TypeAlias = Any
"""Answer of a denoiser or a pipeline: a tuple of tensors, or one of diffusers' output objects."""

Args: TypeAlias = tuple[Any, ...]
"""Positional arguments of a call."""

Keywords: TypeAlias = dict[str, Any]
"""Keyword arguments of a call."""

KeywordsView: TypeAlias = Mapping[str, Any]
"""Keyword arguments of a call, to be read only."""

JsonObject: TypeAlias = dict[str, Any]
"""Object as JSON holds it: names to texts, numbers, lists and further objects."""

JsonView: TypeAlias = Mapping[str, Any]
"""Such an object, to be read only."""
