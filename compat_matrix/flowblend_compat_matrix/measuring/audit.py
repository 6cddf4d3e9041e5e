"""Audit of a declared verdict: which adapters of a stack change nothing in it, measured."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flowblend_plugins.contract.spec import read_spec
from flowblend_plugins.contract.traits import Composition

from ..results.cells import CellSpec
from ..results.verdicts import QUALITY_VERDICTS, Observed
from .bench import Bench
from .cell_in_progress import CellInProgress

_NOTHING = "changed nothing: without it the latents are the same, bit for bit."


def audit(bench: Bench, cell: CellInProgress, latents: torch.Tensor) -> None:
    """Check a refused stack that ran well for adapters without effect, and adapters declared inert for having one.

    Args:
        bench: runs the cell without an adapter.
        cell: is judged; what is found is put among its reasons, or becomes its verdict. A stack of one adapter has
            been compared with its schedule without it already.
        latents: what it gave.
    """
    result = cell.result
    if (result.declared, result.observed) == (Composition.REFUSED.value, Observed.PASS.value):
        idle = [adapter for adapter in cell.spec.stack if _is_idle(bench, cell.spec, adapter, latents)]
        if idle:
            cell.conclude(Observed.INERT, [f"{adapter} {_NOTHING}" for adapter in idle])
    elif Observed(result.observed) in QUALITY_VERDICTS:
        for adapter in _declared_inert(cell):
            is_idle = _is_idle(bench, cell.spec, adapter, latents)
            seen = _NOTHING if is_idle else "changed the latents all the same."
            result.reasons.append(f"{adapter}, declared inert beside the rest, {seen}")


def _declared_inert(cell: CellInProgress) -> Iterator[str]:
    return (adapter for adapter in cell.spec.stack if read_spec(adapter)[0] in cell.inert)


def _is_idle(bench: Bench, spec: CellSpec, adapter: str, latents: torch.Tensor) -> bool:
    if len(spec.stack) < 2:
        return False
    rest = CellSpec(spec.schedule, tuple(other for other in spec.stack if other != adapter))
    with bench.enabled(rest):
        return torch.equal(bench.time_latents(rest, f"{spec.id}: without {adapter}").latents, latents)
