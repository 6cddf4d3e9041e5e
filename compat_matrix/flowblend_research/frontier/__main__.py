"""``python -m flowblend_research.frontier``: measure, and write data, plot and page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.types import JsonObject

from .race import Configuration, Point, Race
from .techniques import blended_techniques, computed_techniques, single_techniques

DOCS = Path(__file__).resolve().parents[3] / "docs"
NUM_PROMPTS = 24
FIRST_PROMPT, SEED = 512, 120_000
"""Captions and noise that nothing else uses: they were first met when computed stacks were measured."""


def measure(race: Race, techniques: dict[str, list[Configuration]]) -> dict[str, list[Point]]:
    """Points of every technique, all in the same rounds; a stack that two techniques share is run once."""
    everything = [one for configurations in techniques.values() for one in configurations]
    found = {point.configuration: point for point in race.run(everything, range(len(race.bench.prompts.texts)))}
    return {name: [found[one] for one in ones if one in found] for name, ones in techniques.items()}


def make_frontier(out: Path, plans: Sequence[Path], num_prompts: int, is_quick: bool) -> str:
    """Measure and write ``frontier.json``, ``frontier.png`` and ``frontier.md`` into ``out``; gives the page.

    Args:
        out: is made where it does not exist.
        plans: what ``flowblend plan`` wrote; their fronts are measured.
        num_prompts: rounds, at least 2.
        is_quick: one setting of each technique, to see that everything works.
    """
    from flowblend_compat_matrix.results.environment import describe_environment
    from flowblend_plugins.manager import make_plugin_manager

    from ..reference_bench import reference_bench
    from .page import to_json, to_markdown
    from .plot import draw

    techniques = single_techniques() | blended_techniques() | computed_techniques(plans)
    if is_quick:
        techniques = {name: ones[:1] for name, ones in techniques.items()}
    manager = make_plugin_manager()
    bench = reference_bench(manager, num_prompts, FIRST_PROMPT, SEED)
    race = Race(bench, report=lambda text: print(text, flush=True))
    measured = measure(race, techniques)
    about: JsonObject = {
        "command": "make bench-frontier" if not is_quick else "python -m flowblend_research.frontier --quick",
        "num_prompts": num_prompts,
        "prompts": list(bench.prompts.texts),
        "first_seed": bench.seed,
        "refused": {one.text: reason for one, reason in race.refused.items()},
        "environment": describe_environment(manager),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "frontier.json").write_text(json.dumps(to_json(measured, about), indent=1) + "\n")
    draw(measured, out / "frontier.png")
    page = to_markdown(measured, about)
    (out / "frontier.md").write_text(page)
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and measure the frontier."""
    parser = argparse.ArgumentParser(prog="flowblend-frontier", description=(__doc__ or "").strip())
    shipped = sorted((DOCS / "planned").glob("*.json"))
    told = "files of `flowblend plan` (default: those in docs/planned)"
    parser.add_argument("--plans", type=Path, nargs="+", default=shipped, help=told)
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="rounds (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one setting of each technique")
    parser.add_argument("--out", type=Path, default=Path("out/frontier"), help="folder (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.prompts < 2:
        parser.error("--prompts must be at least 2: a spread needs more than one")
    try:
        page = make_frontier(given.out, given.plans, given.prompts, given.quick)
    except FlowBlendError as error:
        sys.exit(f"flowblend-frontier: {error}")
    print(page[page.index("## At equal fidelity") : page.index("## Every point")])


if __name__ == "__main__":
    main()
