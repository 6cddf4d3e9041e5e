"""The contract of adapters with what only a trained pair can show: the verdict that is declared, and the speed."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from flowblend_plugins.schedule import StageSchedule
from flowblend_plugins.testing import AdapterContract

from ..results.cells import CellSpec
from ..results.verdicts import Observed, agrees
from .embedded_bench import EmbeddedBench

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

EmbeddedBenches = Callable[[str], EmbeddedBench]


class EmbeddedPairContract(AdapterContract):
    """:class:`~flowblend_plugins.testing.AdapterContract`, and the adapter on an embedded trained pair.

    Attributes:
        embedded_pair: ``"reference"`` (Wan) or ``"reference-unet"``.
        embedded_spec: the adapter as it should be used there; ``None`` for ``spec``.
        embedded_schedule: the schedule it is stacked on.
        may_degrade: quality under the default budget is no failure.
        num_rounds: timed generations of the benchmark, each beside one of large-only.
    """

    embedded_pair: ClassVar[str] = "reference"
    embedded_spec: ClassVar[str | None] = None
    embedded_schedule: ClassVar[str] = "LSL"
    may_degrade: ClassVar[bool] = False
    num_rounds: ClassVar[int] = 5

    def test_declared_and_observed_verdict_agree(
        self, flowblend_embedded_bench: Callable[[str], EmbeddedBench]
    ) -> None:
        embedded: EmbeddedBench = flowblend_embedded_bench(self.embedded_pair)
        result = embedded.measure(self._cell(), self.plugins)
        seen = f"{result.id} on {result.pair}: {result.observed}. {' '.join(result.reasons)}"
        declared = result.declared
        assert declared is not None, f"nothing is declared. {seen}"
        assert agrees(declared, result.observed), f"declared {declared}, observed otherwise: {seen}"
        assert self.may_degrade or result.observed != Observed.DEGRADED.value, seen

    def test_benchmark_beside_large_only(
        self, flowblend_embedded_bench: EmbeddedBenches, benchmark: BenchmarkFixture
    ) -> None:
        """Each round is timed beside large-only, so that a machine that slows down slows both."""
        embedded: EmbeddedBench = flowblend_embedded_bench(self.embedded_pair)
        bench, spec = embedded.bench, self._cell()
        bench.plugins = tuple(self.plugins)
        large_ms: list[float] = []
        ours_ms: list[float] = []

        with contextlib.ExitStack() as attached:

            def large_only() -> None:
                attached.close()
                large_ms.append(bench.time_latents(None, "large-only").latency_ms)
                attached.enter_context(bench.enabled(spec))

            def ours() -> None:
                ours_ms.append(bench.time_latents(spec, spec.id).latency_ms)

            benchmark.pedantic(ours, setup=large_only, rounds=self.num_rounds, warmup_rounds=1)
        ratios = [large / mine for large, mine in zip(large_ms[1:], ours_ms[1:], strict=True)]
        benchmark.extra_info |= {
            "cell": spec.id,
            "large_only_median_ms": statistics.median(large_ms[1:]),
            "speedup_over_large_median": statistics.median(ratios),
            "speedup_over_large_range": [min(ratios), max(ratios)],
        }

    def _cell(self) -> CellSpec:
        return CellSpec(StageSchedule.parse(self.embedded_schedule), (self.embedded_spec or self.spec,))
