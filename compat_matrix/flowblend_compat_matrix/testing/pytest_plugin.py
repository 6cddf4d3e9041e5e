"""The pytest plugin: it is loaded in every test run where this package is installed, so it imports nothing yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .embedded_bench import EmbeddedBench

pytest.register_assert_rewrite("flowblend_plugins.testing.contract", "flowblend_compat_matrix.testing.contract")


@pytest.fixture(scope="session")
def flowblend_embedded_bench() -> Callable[[str], EmbeddedBench]:
    """Gives the :class:`~.embedded_bench.EmbeddedBench` of a pair, loaded at its first use."""
    loaded: dict[str, EmbeddedBench] = {}

    def load(pair: str) -> EmbeddedBench:
        if pair not in loaded:
            from .embedded_bench import EmbeddedBench

            loaded[pair] = EmbeddedBench(pair)
        return loaded[pair]

    return load
