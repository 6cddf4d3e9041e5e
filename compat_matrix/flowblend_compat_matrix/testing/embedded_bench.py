"""An embedded pair that is loaded once, with its baselines run once, for tests of one cell after another."""

from __future__ import annotations

from collections.abc import Sequence

from flowblend_plugins.manager import make_plugin_manager, metrics_by_name, pairs_by_name

from ..measuring.bench import Bench
from ..measuring.loading import PairChoice, pair_loader
from ..measuring.prompts import own_prompts
from ..measuring.runner import MatrixRunner
from ..results.cells import CellSpec
from ..results.matrix_results import CellResult


class EmbeddedBench:
    """A registered pair, one prompt.

    Args:
        pair: name of the preset.
    """

    def __init__(self, pair: str) -> None:
        manager = make_plugin_manager()
        preset = pairs_by_name(manager)[pair]
        self.bench = Bench(
            load=pair_loader(manager, PairChoice(pair)), prompts=own_prompts(preset, 1), call=dict(preset.call_defaults)
        )
        self._runner = MatrixRunner(self.bench, pair, metrics_by_name(manager), num_repeats=1)
        self._baseline = self._runner.measure_baseline()

    def measure(self, spec: CellSpec, plugins: Sequence[object] = ()) -> CellResult:
        """One cell, declared and observed, with these plugins beside the installed ones."""
        self.bench.plugins = tuple(plugins)
        return self._runner.measure(spec, self._baseline).result
