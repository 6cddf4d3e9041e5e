"""A small matrix as plain tests, one for each cell: ``pytest compat_matrix``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowblend_compat_matrix.results.cells import CellSpec
from flowblend_compat_matrix.results.verdicts import agrees
from flowblend_compat_matrix.testing.embedded_bench import EmbeddedBench
from flowblend_plugins.schedule import StageSchedule

STACKS = ((), ("first_block_cache(threshold=0.1)",), ("unipc(num_inference_steps=15)",), ("unipc", "flow_euler"))


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: " + ".join(stack) or "alone")
@pytest.mark.parametrize("schedule", ["LLL", "LSL"])
def test_what_is_declared_is_what_is_seen(
    schedule: str, stack: tuple[str, ...], flowblend_embedded_bench: Callable[[str], EmbeddedBench]
) -> None:
    result = flowblend_embedded_bench("reference").measure(CellSpec(StageSchedule.parse(schedule), stack))
    assert result.declared is not None, result.reasons
    assert agrees(result.declared, result.observed), (result.declared, result.observed, result.reasons)
