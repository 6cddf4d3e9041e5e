"""Keeping decisions out of compiled graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

F = TypeVar("F", bound=Callable[..., object])


def uncompiled(function: F) -> F:
    """``torch.compiler.disable`` with the type of what it is given: methods stay methods to a type checker."""
    import torch  # plugins are listed without it

    return cast(F, torch.compiler.disable(function))
