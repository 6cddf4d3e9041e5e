"""``python -m flowblend_research.verdict_study FOLDER``: false headlines and undecided cells of simulated matrices."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from flowblend_compat_matrix.results.matrix_results import read_matrix
from flowblend_compat_matrix.results.verdicts import QualityBudget

from .simulation import SHAPES, simulate, true_cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table with a line for each pair and shape of the prompts' effects."""
    parser = argparse.ArgumentParser(prog="verdict_study", description=(__doc__ or "").strip())
    parser.add_argument("folder", type=Path, help="of a matrix run, whose cells are taken for the truth")
    parser.add_argument("--runs", type=int, default=200, help="simulated matrices of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    matrix = read_matrix(given.folder)
    budget = QualityBudget(**matrix.run.budget)
    print("| pair | prompts | cells | undecided | wrong verdicts | at 3 prompts | prompts a cell | false headlines |"
          " without confirmation | no headline |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for pair in matrix.run.pairs:
        cells = true_cells([cell for cell in matrix.cells if cell.pair == pair.name])
        for shape, draw in SHAPES.items():
            found = simulate(cells, given.runs, draw, given.seed, budget)
            shares = [
                f"{found.num_undecided / found.num_cells:.1%}",
                f"{found.num_wrong / found.num_cells:.2%}",
                f"{found.num_at_first_look / found.num_cells:.0%}",
                f"{found.num_prompts / found.num_cells:.1f}",
                f"{found.num_false_headlines / found.num_runs:.1%}",
                f"{found.num_false_without_confirmation / found.num_runs:.1%}",
                f"{found.num_without_headline / found.num_runs:.1%}",
            ]
            print(f"| {pair.name} | {shape} | {len(cells)} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
