"""The pytest plugin: it is loaded in every test run where this package is installed, so it imports nothing yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ..results.json_values import JsonObject

pytest.register_assert_rewrite("flowblend_plugins.testing.contract", "flowblend_compat_matrix.testing.contract")


@pytest.fixture(scope="session")
def flowblend_embedded_bench() -> Callable[[str], Any]:
    """Gives the :class:`~.embedded_bench.EmbeddedBench` of a pair, loaded at its first use."""
    loaded: JsonObject = {}

    def load(pair: str) -> Any:
        if pair not in loaded:
            from .embedded_bench import EmbeddedBench

            loaded[pair] = EmbeddedBench(pair)
        return loaded[pair]

    return load
