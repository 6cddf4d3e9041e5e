"""Command ``flowblend tune``: search for the fastest stack within a fidelity budget."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowblend_plugins.cli.grouped import grouped
from flowblend_plugins.cli.options import JsonOption, LargeOption, PairOption, SmallOption
from flowblend_plugins.errors import AdapterError, StackError, UsageError
from flowblend_plugins.files.writing import prepare_output_folder, write_json_atomically
from flowblend_plugins.manager import FlowblendPluginManager, make_adapters
from flowblend_plugins.types import JsonObject

if TYPE_CHECKING:
    from ..measuring.bench import Bench
    from .race import Point
    from .search import Found
    from .space import SearchSpace


class CostName(str, enum.Enum):
    """Costs that a search can save."""

    TIME = "time"
    FLOPS = "flops"


FILE_NAME = "tuned.json"
PLOT_NAME = "tuned.png"
SHIFT_FACTORS = (1.5, 2.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Pair to tune, fidelity to keep, and extent of the search."""

    pair: PairOption = "reference"
    large: LargeOption = None
    small: SmallOption = None
    min_psnr: Annotated[float | None, typer.Option(metavar="DB", help="PSNR to large-only that must be kept.")] = None
    min_alignment: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Prompt alignment to keep, as a share of large-only's.")
    ] = None
    cost: Annotated[CostName, typer.Option(help="Cost to save: time on this machine, or the denoisers' FLOPs.")] = (
        CostName.TIME
    )
    trials: Annotated[int, typer.Option(min=1, help="Stacks to try.")] = 160
    prompts: Annotated[int, typer.Option(min=2, help="Prompts that the best stacks are measured on.")] = 8
    prompt: Annotated[list[str] | None, typer.Option(help="Your own instead; repeat for more.")] = None
    moments: Annotated[
        str | None,
        typer.Option(
            "--moments",
            metavar="FILE",
            help="File of `flowblend calibrate forecast`, for forecasts that err least.  [default: the pair's, if any]",
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0


@grouped
def tune(
    ctx: typer.Context,
    asked: TuneOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for tuned.json and tuned.png.")] = Path("out/tune"),
    as_json: JsonOption = False,
) -> None:
    """Find boundaries, correction, solver, steps and cache together, for a fidelity budget.

    The search walks from the stacks that `flowblend plan` computes, where the pair's moments know its sampler.
    Every trial is timed beside the large denoiser alone, on prompts and seeds that no other command uses. DIR
    receives tuned.json, with the Pareto front and the fastest stack within the budget, which
    `flowblend run --configuration` and `flowblend_plugins.read_configuration` take, and a plot.
    Needs the extra `tune`.

    Examples:

        flowblend tune --min-psnr 25 --out out/tune

        flowblend run --configuration out/tune/tuned.json --prompt "a purple cross"

        flowblend tune --large ./wan14b --small ./wan1.3b --prompt "a cat surfing" --prompt "a train" --min-psnr 24
    """
    from rich.console import Console
    from rich.progress import Progress

    from ..measuring.loading import PairChoice, open_bench
    from .front import Budget, choose
    from .race import Race
    from .record import draw_front
    from .search import search

    manager: FlowblendPluginManager = ctx.obj
    budget = Budget(asked.min_psnr, asked.min_alignment)
    prepare_output_folder(out)
    chosen_pair = PairChoice(asked.pair, asked.large, asked.small)
    bench = open_bench(manager, chosen_pair, asked.prompts, tuple(asked.prompt or ()))
    space = _space(manager, bench, asked)
    with Progress(console=Console(stderr=True), disable=as_json) as progress:
        task = progress.add_task("tune", total=asked.trials)
        found = search(
            Race(bench),
            space,
            asked.trials,
            asked.seed,
            asked.cost.value,
            asked.min_psnr,
            prompts_per_trial=min(3, len(bench.prompts.texts)),
            start=space.computed(asked.min_psnr),
            report=lambda done, text: progress.update(task, completed=done, description=text[-60:]),
        )
    chosen = choose(found.front, found.large, budget, asked.cost.value)
    record = _record(manager, bench, asked, found, chosen)
    write_json_atomically(out / FILE_NAME, record)
    draw_front(found.front, chosen, {}, out / PLOT_NAME)
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        _print(record, out)


def _space(manager: FlowblendPluginManager, bench: Bench, asked: TuneOptions) -> SearchSpace:
    """Stacks that the pair takes.

    Raises:
        UsageError: the pair takes no solver that is searched, or the moments are of another one.
    """
    from .space import CACHES, SearchSpace

    num_steps = bench.call.get("num_inference_steps")
    if num_steps is None:
        raise UsageError("tune: the pair does not say how many steps it takes. Name a registered --pair.")
    samplers = [text for text in _samplers(bench, asked.pair) if _is_usable(manager, bench, text.format(num_steps))]
    caches = [name for name in CACHES if _is_usable(manager, bench, f"{name}(threshold=0.1)")]
    moments = asked.moments or asked.pair
    if not _is_usable(manager, bench, f"forecast(moments={moments!r})"):
        if asked.moments is not None:
            raise UsageError(
                f"tune: --moments {moments} was not measured on this pair. Run `flowblend calibrate forecast` on it."
            )
        moments = None
    if not samplers:
        raise UsageError(f"tune: {type(bench.pipe).__name__} takes none of the solvers that are searched.")
    return SearchSpace(num_steps, tuple(samplers), tuple(caches), moments)


def _record(
    manager: FlowblendPluginManager, bench: Bench, asked: TuneOptions, found: Found, chosen: Point
) -> JsonObject:
    """Contents of ``tuned.json``, as JSON takes them."""
    from ..results.environment import describe_environment
    from .record import API_VERSION, point_to_dict

    return {
        "api_version": API_VERSION,
        "pair": asked.pair if asked.large is None else None,
        "denoisers": [type(bench.pipe).__name__, str(asked.large or asked.pair), str(asked.small or asked.pair)],
        "cost": asked.cost.value,
        "budget": {"min_psnr_db": asked.min_psnr, "min_alignment": asked.min_alignment},
        "schedule": chosen.configuration.schedule,
        "adapters": list(chosen.configuration.adapters),
        "chosen": point_to_dict(chosen),
        "front": [point_to_dict(point) for point in found.front],
        "num_tried": found.num_tried,
        "num_refused": len(found.refused),
        "prompts": list(bench.prompts.texts),
        "first_seed": bench.seed,
        "environment": describe_environment(manager),
    }


def _samplers(bench: Bench, pair: str) -> Iterator[str]:
    """Solvers at the pipeline's own spacing of steps, at larger timestep shifts, and with those selected for the pair.

    Fewer steps are better spent where there is much noise, which is what a larger shift does.
    """
    config = bench.pipe.scheduler.config
    shift = config.get("flow_shift", config.get("shift"))
    shifts = [] if shift is None else [f", flow_shift={factor * shift}" for factor in SHIFT_FACTORS]
    for options in ("", *shifts, f", timesteps={pair!r}"):
        yield from (f"{solver}(num_inference_steps={{}}{options})" for solver in ("unipc", "dpmpp_2m"))


def _is_usable(manager: FlowblendPluginManager, bench: Bench, text: str) -> bool:
    """Whether the pair takes an adapter."""
    import flowblend_plugins

    try:
        make_adapters(manager, [text])
        with flowblend_plugins.enable(bench.pipe, bench.small, "LSL", adapters=[text]):
            return True
    except (AdapterError, StackError):
        return False


def _print(record: JsonObject, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Pareto front", title_justify="left")
    for head in ("speed", "PSNR", "captions right", "stack"):
        table.add_column(head, justify="left" if head == "stack" else "right", overflow="fold")
    for row in record["front"]:
        is_chosen = (row["schedule"], row["adapters"]) == (record["schedule"], record["adapters"])
        alignment = "–" if row["alignment"] is None else f"{row['alignment']:.1%}"
        stack = " + ".join((row["schedule"], *row["adapters"]))
        cells = (f"{row['speedup_over_large']:.2f}×", f"{row['psnr_db']:.1f} dB", alignment, stack)
        table.add_row(*cells, style="bold" if is_chosen else None)
    console = Console()
    console.print(table)
    tried = f"{record['num_tried']} stacks were measured, {record['num_refused']} refused before they ran"
    chosen = record["chosen"]
    fidelity = f"{chosen['psnr_db']:.1f} dB" if chosen["psnr_db"] is not None else "the same video"
    large, small = record["denoisers"][1:]
    pair = f"--pair {record['pair']}" if record["pair"] else f"--large {large} --small {small}"
    for line in (
        f"{tried}.",
        f"Chosen: {' + '.join((record['schedule'], *record['adapters']))}",
        f"Measured: {chosen['speedup_over_large']:.2f} times as fast as large-only, {fidelity}.",
        f"It is in {out / FILE_NAME}. Next, run it beside large-only:",
        f"  flowblend run {pair} --configuration {out / FILE_NAME} --compare",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
