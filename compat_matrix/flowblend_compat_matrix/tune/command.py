"""Command ``flowblend tune``: search for the fastest stack within a fidelity budget."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flowblend_plugins.cli.options import JsonOption, LargeOption, PairOption, SmallOption
from flowblend_plugins.errors import AdapterError, StackError, UsageError
from flowblend_plugins.files.writing import prepare_output_folder, write_json_atomically
from flowblend_plugins.manager import FlowblendPluginManager, make_adapters

from ..results.json_values import JsonObject


class CostName(str, enum.Enum):
    """Costs that a search can save."""

    TIME = "time"
    FLOPS = "flops"


FILE_NAME = "tuned.json"
PLOT_NAME = "tuned.png"
SHIFT_FACTORS = (1.5, 2.0, 3.0)


def tune(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    small: SmallOption = None,
    min_psnr: Annotated[
        float | None, typer.Option("--min-psnr", metavar="DB", help="PSNR to large-only that must be kept.")
    ] = None,
    min_alignment: Annotated[
        float | None,
        typer.Option("--min-alignment", min=0.0, max=1.0, help="Prompt alignment to keep, as a share of large-only's."),
    ] = None,
    cost: Annotated[
        CostName, typer.Option(help="What is saved: time on this machine, or the denoisers' FLOPs.")
    ] = CostName.TIME,
    trials: Annotated[int, typer.Option(min=1, help="Stacks to try.")] = 160,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts that the best stacks are measured on.")] = 8,
    prompt: Annotated[list[str] | None, typer.Option(help="Your own instead; repeat for more.")] = None,
    moments: Annotated[
        str | None,
        typer.Option(
            "--moments",
            metavar="FILE",
            help="Of `flowblend calibrate forecast`, for forecasts that err least.  [default: the pair's, if any]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for tuned.json and tuned.png.")] = Path("out/tune"),
    as_json: JsonOption = False,
) -> None:
    """Find boundaries, correction, solver, steps and cache together, for a fidelity budget.

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
    from ..results.environment import describe_environment
    from .front import Budget, choose
    from .race import Race
    from .record import API_VERSION, draw_front, point_to_dict
    from .search import search
    from .space import CACHES, SearchSpace

    manager: FlowblendPluginManager = ctx.obj
    budget = Budget(min_psnr, min_alignment)
    prepare_output_folder(out)
    bench = open_bench(manager, PairChoice(pair, large, small), prompts, tuple(prompt or ()))
    num_steps = bench.call.get("num_inference_steps")
    if num_steps is None:
        raise UsageError("tune: the pair does not say how many steps it takes. Name a registered --pair.")
    usable = _usable(manager, bench.pipe, bench.small)
    samplers = tuple(text for text in _samplers(bench.pipe, pair) if usable(text.format(num_steps)))
    caches = tuple(name for name in CACHES if usable(f"{name}(threshold=0.1)"))
    if moments is None:
        moments = pair if usable(f"forecast(moments={pair!r})") else None
    elif not usable(f"forecast(moments={moments!r})"):
        raise UsageError(
            f"tune: --moments {moments} was not measured on this pair. Run `flowblend calibrate forecast` on it."
        )
    if not samplers:
        raise UsageError(f"tune: {type(bench.pipe).__name__} takes none of the solvers that are searched.")
    console = Console(stderr=True)
    with Progress(console=console, disable=as_json) as progress:
        task = progress.add_task("tune", total=trials)
        found = search(
            Race(bench),
            SearchSpace(num_steps, samplers, caches, moments),
            trials,
            seed,
            cost.value,
            min_psnr,
            prompts_per_trial=min(3, len(bench.prompts.texts)),
            report=lambda done, text: progress.update(task, completed=done, description=text[-60:]),
        )
    chosen = choose(found.front, found.large, budget, cost.value)
    record: JsonObject = {
        "api_version": API_VERSION,
        "pair": pair if large is None else None,
        "denoisers": [type(bench.pipe).__name__, str(large or pair), str(small or pair)],
        "cost": cost.value,
        "budget": {"min_psnr_db": min_psnr, "min_alignment": min_alignment},
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
    write_json_atomically(out / FILE_NAME, record)
    draw_front(found.front, chosen, {}, out / PLOT_NAME)
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        _print(record, out)


def _samplers(pipe: Any, pair: str) -> Iterator[str]:
    """Solvers at the pipeline's own spacing of steps, at larger timestep shifts, and with those selected for the pair.

    Fewer steps are better spent where there is much noise, which is what a larger shift does.
    """
    config = pipe.scheduler.config
    shift = config.get("flow_shift", config.get("shift"))
    shifts = [] if shift is None else [f", flow_shift={factor * shift}" for factor in SHIFT_FACTORS]
    for options in ("", *shifts, f", timesteps={pair!r}"):
        yield from (f"{solver}(num_inference_steps={{}}{options})" for solver in ("unipc", "dpmpp_2m"))


def _usable(manager: FlowblendPluginManager, pipe: Any, small: Any) -> Callable[[str], bool]:
    import flowblend_plugins

    def is_usable(text: str) -> bool:
        try:
            make_adapters(manager, [text])
            with flowblend_plugins.enable(pipe, small, "LSL", adapters=[text]):
                return True
        except (AdapterError, StackError):
            return False

    return is_usable


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
    console.print(f"{tried}. The choice (bold) is in {out / FILE_NAME}.", highlight=False, markup=False)
