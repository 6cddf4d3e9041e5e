"""An adapter that takes its process with it, for the tests of worker processes, which import it by name."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, hookimpl
from flowblend_plugins.contract.traits import Family


@dataclass(frozen=True, kw_only=True)
class Lethal(Adapter):
    name: ClassVar[str] = "lethal"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.FEATURE_CACHING)
    how: str

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[None]:
        if self.how == "exits":
            os._exit(3)
        if self.how == "segfaults":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "hangs":
            time.sleep(3600)
        if self.how == "eats memory":
            torch.zeros(2**48)  # more than there are addresses, however a system promises memory
        yield


class Plugin:
    @hookimpl
    def flowblend_register_adapters(self) -> list[type[Adapter]]:
        return [Lethal]
