"""An adapter with an option: no component of a predicted velocity may exceed a limit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import flowblend_plugins as fb
from flowblend_plugins.contract.traits import Family


@dataclass(frozen=True, kw_only=True)
class Clamp(fb.Adapter):
    name: ClassVar[str] = "clamp"
    traits: ClassVar[fb.AdapterTraits] = fb.AdapterTraits(family=Family.DISTILLED_SAMPLER)
    limit: float = 1.0

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError(f"limit={self.limit}: expected a number above 0")

    @contextlib.contextmanager
    def attach(self, target: fb.AttachTarget) -> Iterator[None]:
        def clamp(module: Any, arguments: Any, output: Any) -> Any:
            return (output[0].clamp(-self.limit, self.limit), *output[1:])

        with contextlib.ExitStack() as undo:
            for denoiser in target.denoisers.values():
                undo.callback(denoiser.register_forward_hook(clamp).remove)
            yield
