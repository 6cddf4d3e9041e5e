"""The matrix as Markdown: to be committed, compared, and read where no video can be shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..results.matrix_results import CellResult, Matrix, PairRecord
from .caveats import caveats
from .figures import between, figure, percent, plus_minus, times
from .grid import REFUSED_EVERYWHERE, make_grid
from .headline import headline
from .markdown_table import escape, table
from .media import on_front
from .overview import brief, fidelity, pairs_with_cells, stacks_by_reason
from .view import DECLARED_MARKS, LEGEND, VERDICT_MARKS

_FEW = 12
"""Up to so many cells every figure is given of all of them; of more, of those on the front."""


def render_markdown(matrix: Matrix) -> str:
    """Every cell of every pair: grids of stacks and schedules, the Pareto front, and reasons, each said once."""
    run, environment = matrix.run, matrix.environment
    versions = ", ".join(f"{name} {environment.get(name, '?')}" for name in ("flowblend-plugins", "torch", "diffusers"))
    lines = [
        "# FlowBlending compatibility matrix",
        "",
        f"{len(matrix.cells)} cells on {_counted(len(run.pairs), 'pair')}, measured "
        f"{escape(str(environment.get('date', '?'))[:10])} with {escape(versions)} on "
        f"{escape(str(environment.get('device', '?')))}.",
        "",
        "```console",
        *run.command.replace("```", "'''").splitlines(),
        "```",
        "",
    ]
    if not matrix.is_complete:
        lines += [f"Interrupted: {len(matrix.cells)} of {run.num_planned} cells were finished.", ""]
    verdicts = ", ".join(f"{mark} {words}" for mark, words in LEGEND.items())
    lines += [
        f"In the grids: the observed verdict ({verdicts}), the speed-up over the large denoiser alone, and PSNR to its "
        "video of the same seed in dB; “exact” is bit for bit. An exclamation mark: not as declared, and no "
        "expectation says why.",
        "",
    ]
    for pair, cells in pairs_with_cells(matrix):
        lines += _pair(matrix, pair, cells)
    lines += ["## Before you quote a figure", "", *_caveats(matrix)]
    return "\n".join(lines).rstrip() + "\n"


def _pair(matrix: Matrix, pair: PairRecord, cells: list[CellResult]) -> list[str]:
    found = headline(pair, cells)
    lines = [f"## {escape(pair.name)}", "", f"**{escape(found.text)}** {escape(found.detail)}", ""]
    call = ", ".join(f"{name}={value}" for name, value in pair.call.items())
    what = f"{_counted(len(pair.prompts), 'prompt')}, {_counted(matrix.run.num_repeats, 'timed round')}"
    lines += [f"{escape(pair.pipeline)}: {escape(call)}; {what}.", "", *_counts(cells)]
    front = on_front(cells, pair.front)
    if front:
        is_all = len(cells) <= _FEW
        lines += ["### Every cell in full" if is_all else "### On the Pareto front", ""]
        lines += _in_full(cells if is_all else front)
    grid = make_grid(cells)
    for group in grid.groups:
        if group.title != REFUSED_EVERYWHERE:
            lines += [f"### {group.title}", ""]
            rows = [[row.stack, *(brief(cell) for cell in row.cells)] for row in group.rows]
            lines += table(["stack", *grid.schedules], rows)
    lines += _because(
        "Refused", "They cost nothing: each is refused before anything runs.", cells, grid.schedules, "refused"
    )
    lines += _because("Broken", "", cells, grid.schedules, "broken")
    lines += _because("Skipped", "", cells, grid.schedules, "skipped")
    lines += _expected(cells, grid.schedules)
    return lines


def _caveats(matrix: Matrix) -> list[str]:
    """Caveats that hold for all pairs once, the rest with the pair that they are about."""
    said = {pair.name: caveats(matrix, pair) for pair in matrix.run.pairs}
    shared = [one for one in next(iter(said.values()), []) if all(one in others for others in said.values())]
    lines = [f"- {escape(one)}" for one in shared]
    for name, its in said.items():
        lines += [f"- {escape(name)}: {escape(one)}" for one in its if one not in shared]
    return lines


def _counts(cells: Sequence[CellResult]) -> list[str]:
    """Counts of cells, declared verdicts down and observed ones across."""
    observed = [name for name in VERDICT_MARKS if any(cell.observed == name for cell in cells)]
    num = Counter((cell.declared, cell.observed) for cell in cells)
    declared = [name for name in (*DECLARED_MARKS, None) if any(cell.declared == name for cell in cells)]
    rows = [
        [(name or "nothing").replace("_", " "), *(str(num[name, seen] or "") for seen in observed)] for name in declared
    ]
    return table(["declared \\ observed", *observed], rows)


def _in_full(cells: Sequence[CellResult]) -> list[str]:
    heads = ["cell", "declared", "observed", "speed-up", "rounds", "stacking efficiency", "FLOPs", "PSNR dB", "SSIM"]
    rows = [
        [
            cell.id,
            (cell.declared or "–").replace("_", " "),
            cell.observed or "–",
            times(cell.speedup_over_large),
            between(cell.speedup_over_large_range),
            figure(cell.stacking_efficiency),
            percent(cell.flops_fraction_full),
            fidelity(cell) if cell.is_identical_to_large else plus_minus(cell.psnr_db, cell.psnr_db_std, 1),
            plus_minus(cell.ssim, cell.ssim_std, 3),
        ]
        for cell in cells
    ]
    return table(heads, rows)


def _because(title: str, intro: str, cells: Sequence[CellResult], schedules: list[str], observed: str) -> list[str]:
    found = stacks_by_reason((cell for cell in cells if cell.observed == observed), schedules)
    if not found:
        return []
    rows = [["; ".join(stacks), reason] for reason, stacks in found]
    return [f"### {title}", "", *([intro, ""] if intro else []), *table(["stack", "why"], rows)]


def _expected(cells: Sequence[CellResult], schedules: list[str]) -> list[str]:
    """Cells that are not as declared, with the reason where an expectation gives one."""
    lines: list[str] = []
    surprises = [cell for cell in cells if cell.surprise]
    if surprises:
        rows = [
            [cell.id, (cell.declared or "–").replace("_", " "), cell.observed or "–", " ".join(cell.reasons)]
            for cell in surprises
        ]
        lines += ["### Not as declared", "", *table(["cell", "declared", "observed", "why"], rows)]
    expected: dict[str, list[CellResult]] = {}
    for cell in cells:
        if cell.expectation and not cell.surprise:
            expected.setdefault(cell.expectation, []).append(cell)
    if expected:
        rows = [
            ["; ".join(stack for _, stacks in stacks_by_reason(_unreasoned(found), schedules) for stack in stacks),
             ", ".join(dict.fromkeys(cell.observed or "–" for cell in found)), reason]
            for reason, found in expected.items()
        ]  # fmt: skip
        lines += ["### Foreseen in expectations.toml", "", *table(["stack", "observed", "why"], rows)]
    return lines


def _unreasoned(cells: Sequence[CellResult]) -> list[CellResult]:
    return [CellResult(id=cell.id, pair=cell.pair, schedule=cell.schedule, adapters=cell.adapters) for cell in cells]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
