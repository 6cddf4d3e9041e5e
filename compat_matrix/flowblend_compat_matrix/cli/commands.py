"""Commands ``flowblend matrix run``, ``report`` and ``diff``, as one group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flowblend_plugins.cli.grouped import grouped
from flowblend_plugins.cli.options import JsonOption
from flowblend_plugins.manager import FlowblendPluginManager

from ..report.gate import EXIT_CODE, conclude
from .options import FormatOption, GateOptions, MaxMbOption, ReportFormat
from .plan import known_outcomes
from .run import run

matrix = typer.Typer(
    help="The compatibility matrix: which schedules and accelerations work together, how fast, and how well.",
    no_args_is_help=True,
)
matrix.command()(run)


@matrix.command()
@grouped
def report(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `flowblend matrix run` wrote.")],
    gate: GateOptions,
    as_format: FormatOption = ReportFormat.HTML,
    max_mb: MaxMbOption = None,
) -> None:
    """Write DIR/report.html again from DIR/matrix.json and its videos, and show the table.

    With --format markdown DIR/report.md is written instead: the same as tables, for places that show no video. With
    --format json it is DIR/matrix.compact.json: every figure of every cell, to be committed and compared.
    Says which results are stale: measured with other versions than are installed now. Nothing is measured; the cells
    are checked against the expectations as they are today.
    """
    from ..report.terminal import print_matrix
    from ..results.environment import describe_environment
    from ..results.expectations import check_expectations
    from ..results.matrix_results import read_matrix
    from ..running.folder import MAX_BYTES, write_compact, write_markdown, write_report
    from ..running.staleness import stale_cells

    manager: FlowblendPluginManager = ctx.obj
    results = read_matrix(folder)
    known = known_outcomes(manager, results.run.pairs, gate.expectations)
    for cell in results.cells:
        check_expectations(cell, known)
    if as_format is ReportFormat.MARKDOWN:
        path = write_markdown(folder, results)
    elif as_format is ReportFormat.JSON:
        path = write_compact(folder, results)
    else:
        path = write_report(folder, results, MAX_BYTES if max_mb is None else round(max_mb * 1e6))
    print_matrix(results, path)
    stale = stale_cells(results, describe_environment(manager))
    if stale:
        why = "; ".join(dict.fromkeys(change for changes in stale.values() for change in changes))
        typer.echo(
            f"{len(stale)} of {len(results.cells)} cells are stale: {why}. `flowblend matrix run --resume` measures "
            "them again.",
            err=True,
        )
    conclude(results, gate.fail_on or (), gate.junit, gate.summary)


@matrix.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Folder that an earlier `flowblend matrix run` wrote.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder that a later one wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Show which cells changed their verdict from OLD to NEW, and whose figures moved by more than noise.

    Noise is the spread of the timed rounds, of which three are needed, and over prompts and seeds where the runs drew
    different ones. OLD and NEW may be files, such as a committed matrix.compact.json. Exit code 3 if anything changed.
    """
    from ..report.diff_terminal import print_diff
    from ..results.diff import compare_matrices
    from ..results.matrix_results import read_matrix

    found = compare_matrices(read_matrix(old), read_matrix(new))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_diff(found)
    if not found.is_empty:
        raise typer.Exit(EXIT_CODE)
