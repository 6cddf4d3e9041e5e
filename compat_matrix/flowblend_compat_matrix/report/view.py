"""Contents of the report, worked out before the template sees them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from flowblend_plugins.types import JsonObject

from ..results.matrix_results import BaselineResult, CellResult, Matrix, PairRecord, RunRecord
from .caveats import caveats
from .figures import figure, times
from .headline import Headline, headline

VERDICT_MARKS = {
    "pass": "✓", "degraded": "≈", "undecided": "?", "inert": "○", "refused": "⊘", "broken": "✕", "skipped": "…",
}  # fmt: skip
LEGEND = {mark: "inert (no effect)" if name == "inert" else name for name, mark in VERDICT_MARKS.items()}
"""Words for the marks, as legends say them."""

DECLARED_MARKS = {"composes": "+", "composes_with_reset": "↻", "inert": "○", "refused": "⊘"}
# Options of `matrix run` that a `run` of one of its cells needs too.
_CARRIED = (
    *("--large", "--small", "--early", "--late", "--steps", "--guidance-scale", "--height", "--width"),
    *("--num-frames", "--image", "--device", "--dtype", "--offload"),
)


@dataclass(frozen=True)
class PairView:
    """Everything on the page about one pair that no script adds."""

    record: PairRecord
    headline: Headline
    num_cells: int
    num_stacks: int
    schedules: list[str]
    caveats: list[str]


def pair_views(matrix: Matrix) -> list[PairView]:
    """Work out the whole page; pairs that have no cell yet are left out."""
    views = []
    for pair in matrix.run.pairs:
        cells = [cell for cell in matrix.cells if cell.pair == pair.name]
        if cells:
            stacks, schedules = {tuple(cell.adapters) for cell in cells}, dict.fromkeys(cell.schedule for cell in cells)
            found = headline(pair, cells)
            views.append(PairView(pair, found, len(cells), len(stacks), [*schedules], caveats(matrix, pair)))
    return views


def command_prefix(run: RunRecord, pair: PairRecord) -> str:
    """Beginning of the ``flowblend run`` that makes one of the pair's cells, up to its schedule and adapters."""
    try:
        words = shlex.split(run.command)
    except ValueError:
        words = []
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    carried = [part for flag in _CARRIED if flag in words[:-1] for part in (flag, words[words.index(flag) + 1])]
    return shlex.join(["flowblend", "run", *([] if "--large" in carried else ["--pair", pair.name]), *carried])


def first_videos(pair: PairRecord, cells: list[CellResult]) -> list[JsonObject]:
    """The videos that are shown first: large-only, the best stack, LSL, small-only; each cell once."""
    lsl = next((cell for cell in cells if cell.schedule == "LSL" and not cell.adapters), None)
    middle = {cell.id: cell for cell in (headline(pair, cells).best, lsl) if cell is not None}
    large, small = pair.large_only, pair.small_only
    return [
        {"title": "large only", "caption": times(1.0), "files": large.videos},
        *({"title": cell.id, "caption": _caption(cell), "files": cell.videos} for cell in middle.values()),
        {"title": "small only", "caption": _caption(small, large), "files": small.videos},
    ]


def _caption(of: CellResult | BaselineResult, large: BaselineResult | None = None) -> str:
    if isinstance(of, CellResult):
        speed, psnr = (of.confirmation or of).speedup_over_large, (of.confirmation or of).psnr_db
    else:
        is_timed = large is not None and large.latency_ms is not None and of.latency_ms is not None
        speed, psnr = large.latency_ms / of.latency_ms if is_timed else None, of.psnr_db  # type: ignore[operator,union-attr]
    return ", ".join(one for one in (times(speed), "" if psnr is None else f"{figure(psnr, 1)} dB") if one)
