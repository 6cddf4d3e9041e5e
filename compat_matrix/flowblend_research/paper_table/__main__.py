"""``python -m flowblend_research.paper_table``: measure, and write the data and the page."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.types import JsonObject

from .columns import COLUMNS, CONTROL, Column
from .page import to_markdown

DOCS = Path(__file__).resolve().parents[3] / "docs"


def make_table(
    columns: Sequence[Column], num_prompts: int, num_repeats: int, report: Callable[[str], None] = print
) -> JsonObject:
    """Measure the columns on the reference pair; those that cannot be enabled on it are named with the reason.

    Args:
        columns: the first one is the baseline.
        num_prompts: at least 2.
        num_repeats: rounds of timing.
        report: told how far it is.
    """
    from flowblend_compat_matrix.results.environment import describe_environment
    from flowblend_plugins.manager import make_plugin_manager

    from ..reference_bench import reference_bench
    from .measure import measure

    manager = make_plugin_manager()
    bench = reference_bench(manager, num_prompts, 0, 0, in_batches=True)
    environment = describe_environment(manager)
    absent = []
    for column in columns:
        try:
            with bench.enabled(column.spec("LSL")):
                pass
        except FlowBlendError as error:  # an adapter or its weights are not there
            reason = str(error).replace(f"{DOCS.parent}{os.sep}", "")  # read on other machines
            absent.append({"name": column.name, "reason": reason})
            report(f"{column.name}: not measured. {reason}")
    present = [column for column in columns if column.name not in {one["name"] for one in absent}]
    cells = measure(bench, present, num_repeats, report)
    return {
        "api_version": 1,
        "environment": environment,
        "num_prompts": num_prompts,
        "num_repeats": num_repeats,
        "guidance_scale": bench.call["guidance_scale"],
        "control": CONTROL,
        "columns": [asdict(column) for column in present],
        "absent": absent,
        "cells": [cell.to_json() for cell in cells],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flowblend_research.paper_table", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("--prompts", type=int, default=24, help="how many held-out prompts (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for paper_table.json and .md (default: docs)")
    asked = parser.parse_args(arguments)
    if asked.prompts < 2 or asked.repeats < 1:
        parser.error("--prompts must be at least 2 and --repeats at least 1")
    try:
        record = make_table(COLUMNS, asked.prompts, asked.repeats, lambda line: print(line, flush=True))
    except FlowBlendError as error:
        print(f"paper table: {error}", file=sys.stderr)
        return 1
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "paper_table.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (asked.out / "paper_table.md").write_text(to_markdown(record), encoding="utf-8")
    print(asked.out / "paper_table.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
