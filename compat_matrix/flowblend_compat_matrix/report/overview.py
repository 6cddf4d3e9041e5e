"""Lines of the tables on a pair, in Markdown and in the terminal: one for each cell, stack or reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..results.matrix_results import CellResult, Matrix, PairRecord
from .figures import figure, times
from .grid import stack_name
from .view import VERDICT_MARKS


def pairs_with_cells(matrix: Matrix) -> list[tuple[PairRecord, list[CellResult]]]:
    """Every pair of the run that has cells, with them."""
    found = ((pair, [cell for cell in matrix.cells if cell.pair == pair.name]) for pair in matrix.run.pairs)
    return [(pair, cells) for pair, cells in found if cells]


def brief(cell: CellResult | None) -> str:
    """Verdict, speed-up and PSNR in a few characters; an exclamation mark where it is not as declared."""
    if cell is None:
        return ""
    mark = VERDICT_MARKS.get(cell.observed or "", "?") + ("!" if cell.surprise else "")
    if cell.speedup_over_large is None:
        return mark
    return f"{mark} {times(cell.speedup_over_large)} {fidelity(cell)}"


def fidelity(cell: CellResult, digits: int = 1) -> str:
    """PSNR to large-only in dB, or that there is no difference."""
    return "exact" if cell.is_identical_to_large else figure(cell.psnr_db, digits)


def stacks_by_reason(cells: Iterable[CellResult], all_schedules: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Reasons of cells, with the stacks that they are given for; a stack names its schedules where it is not all."""
    schedules: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        of_reason = schedules.setdefault(" ".join(dict.fromkeys(cell.reasons)), {})
        of_reason.setdefault(stack_name(cell.adapters), []).append(cell.schedule)
    return [
        (
            reason,
            [stack if len(on) == len(all_schedules) else f"{stack} on {', '.join(on)}" for stack, on in found.items()],
        )
        for reason, found in schedules.items()
    ]
