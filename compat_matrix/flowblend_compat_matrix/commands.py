"""``flowblend matrix run`` and ``flowblend matrix report``."""

from __future__ import annotations

import enum
import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowblend_plugins.cli.options import (
    EarlyOption,
    GuidanceScaleOption,
    JsonOption,
    LargeOption,
    LateOption,
    OutOption,
    PromptOption,
    SeedOption,
    SmallOption,
    StepsOption,
    find_preset,
    read_schedule,
)
from flowblend_plugins.cli.output import prepare_output_folder
from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import FlowblendPluginManager, make_adapters
from flowblend_plugins.presets import PairPreset
from flowblend_plugins.schedule import DEFAULT_EARLY, DEFAULT_LATE, StageSchedule
from flowblend_plugins.traits import Family

from .cells import PAPER_SCHEDULES, parse_stack, plan_cells
from .config_file import ConfigOption
from .planning import all_stacks, check_depth, combinations, num_threads_each, shown_prompts, suggested_stacks
from .verdicts import QualityBudget

if TYPE_CHECKING:  # a command line that only prints its help loads no torch
    from .executors import Executor
    from .orders import PairOrder

matrix = typer.Typer(
    help="The compatibility matrix: which schedules and accelerations work together, how fast, and how well.",
    no_args_is_help=True,
)

_DEFAULT_PAIR = "reference"
_DEFAULT_PROMPTS = 8
_DEFAULT_REPEATS = 3
_REPEATS_OF_MANY = 2
_MANY_CELLS = 200


class ExecutorName(str, enum.Enum):
    """Who runs the cells."""

    LOCAL = "local"


PairsOption = Annotated[
    list[str] | None,
    typer.Option("--pair", help=f"A registered pair by name; may be repeated.  [default: {_DEFAULT_PAIR}]"),
]
SchedulesOption = Annotated[
    list[str] | None,
    typer.Option("--schedule", help=f"A schedule to try; may be repeated.  [default: {', '.join(PAPER_SCHEDULES)}]"),
]
StacksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help='An acceleration to cross with every schedule, as "name(option=value)"; join several with "+" to stack '
        "them. May be repeated: each is tried for itself.",
    ),
]
FamiliesOption = Annotated[
    list[Family] | None,
    typer.Option("--family", help="Cross every installed adapter of this family too, at its suggested settings."),
]
AllOption = Annotated[
    bool, typer.Option("--all-adapters", help="Cross every installed adapter, third-party ones included.")
]
DepthOption = Annotated[
    int,
    typer.Option(
        "--depth",
        min=1,
        max=4,
        help="Stack the adapters on each other too: 2 for all pairs, 3 for triples as well; each at the first of its "
        "settings.",
    ),
]
RepeatsOption = Annotated[
    int | None,
    typer.Option(
        "--repeats",
        min=1,
        help=f"Timed generations of each cell and each of its controls.  [default: {_DEFAULT_REPEATS}; "
        f"{_REPEATS_OF_MANY} for more than {_MANY_CELLS} cells]",
    ),
]
PromptsOption = Annotated[
    int | None,
    typer.Option(
        "--prompts", min=1, help=f"How many of the pair's own prompts.  [default: {_DEFAULT_PROMPTS}, or all]"
    ),
]
PixelsOption = Annotated[int | None, typer.Option(min=1, help="Pixels.  [default: the pair's]")]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, help="Worker processes; they never time anything at the same moment.")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--cell-timeout", min=0.1, help="Seconds after which a part of a cell that does not end is given up."),
]
MemoryOption = Annotated[
    int | None,
    typer.Option("--memory-limit", min=1, help="Megabytes that a worker may take beyond what its pair needs to load."),
]


@matrix.command()
def run(
    ctx: typer.Context,
    config: ConfigOption = None,
    pair: PairsOption = None,
    large: LargeOption = None,
    small: SmallOption = None,
    schedule: SchedulesOption = None,
    early: EarlyOption = None,
    late: LateOption = None,
    adapter: StacksOption = None,
    family: FamiliesOption = None,
    all_adapters: AllOption = False,
    depth: DepthOption = 1,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    seed: SeedOption = 0,
    prompt: PromptOption = None,
    prompts: PromptsOption = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Videos of each prompt, each from its own noise.")] = 1,
    repeats: RepeatsOption = None,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="[default: the pair's]")] = None,
    min_psnr_db: Annotated[
        float, typer.Option(help="Budget: below this PSNR to large-only a cell is degraded.")
    ] = QualityBudget.min_psnr_db,
    min_ssim: Annotated[float, typer.Option(help="Budget: the same of SSIM.")] = QualityBudget.min_ssim,
    min_alignment_kept: Annotated[
        float, typer.Option(help="Budget: the same of prompt alignment, as a fraction of large-only's.")
    ] = QualityBudget.min_alignment_kept,
    executor: Annotated[ExecutorName, typer.Option(help="Where cells run.")] = ExecutorName.LOCAL,
    workers: WorkersOption = 1,
    cell_timeout: TimeoutOption = None,
    memory_limit: MemoryOption = None,
    sharing: Annotated[
        bool, typer.Option("--sharing/--no-sharing", help="Compute once what cells have in common; never for timing.")
    ] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what DIR holds of an interrupted run.")] = False,
    out: OutOption = Path("out/matrix"),
    as_json: JsonOption = False,
) -> None:
    """Measure every schedule, alone and with every stack of adapters, and write a report.

    Each cell is timed beside its controls in one process, and held against the large denoiser alone at the same seeds.
    DIR receives matrix.json, report.html (one file, videos included) and videos/. Exit code 1 if a cell is broken.

    Examples:

        flowblend matrix run --out out/demo

        flowblend matrix run --schedule LSL --schedule L:10,S:30,L:10 --adapter "unipc(num_inference_steps=25)"

        flowblend matrix run --family feature_caching --out out/caches

        flowblend matrix run --pair reference --pair reference-unet --all-adapters --depth 2 --workers 2 --out out/all

        flowblend matrix run --config matrix.toml --resume

        flowblend matrix run --large ./wan14b --small ./wan1.3b --prompt "a cat surfing" --repeats 1
    """
    manager: FlowblendPluginManager = ctx.obj
    names = list(dict.fromkeys(pair or [_DEFAULT_PAIR]))
    if large is not None and small is None:
        raise UsageError("--large needs --small: the matrix compares two denoisers.")
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt gives one prompt and --prompts a number of the pair's own. Leave one of them out.")
    if (large is not None or small is not None) and len(names) > 1:
        raise UsageError("--large and --small make one pair of their own, so they go with one --pair at most.")
    call = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "height": height, "width": width}
    call = {name: value for name, value in (call | {"num_frames": num_frames}).items() if value is not None}
    suggested = [text for asked in family or () for text in suggested_stacks(manager, asked)]
    stacks = [
        parse_stack(text) for text in (*(adapter or ()), *suggested, *(all_stacks(manager) if all_adapters else ()))
    ]
    check_depth(depth, stacks)
    stacks = list(dict.fromkeys([*stacks, *combinations(stacks, depth)]))
    for stack in stacks:
        make_adapters(manager, stack)  # a wrong name or option is told before anything is loaded

    from .environment import describe_environment
    from .executors import make_executor
    from .orders import PairOrder, RunSettings, order_batches
    from .report.terminal import print_matrix, print_work
    from .results import Matrix, RunRecord
    from .resume import resume as resumed
    from .resume import unfinished
    from .session import ProgressBar, measure_matrix

    orders, cells = [], {}
    texts = list(dict.fromkeys(schedule or PAPER_SCHEDULES))
    for name in names:
        preset = find_preset(manager, name, large)
        order = PairOrder(
            name=preset.name if preset and small is None else f"{large or name} + {small}",
            preset=preset.name if preset else None,
            large=large,
            small=small,
            prompts=None if prompt is None else (prompt,),
            num_prompts=_num_prompts(preset, prompt, prompts),
            num_seeds=seeds,
            seed=seed,
            call=(dict(preset.call_defaults) if preset else {}) | call,
            steps_are_asked=steps is not None,
            guidance_is_asked=guidance_scale is not None,
            early=early if early is not None else preset.early if preset else DEFAULT_EARLY,
            late=late if late is not None else preset.late if preset else DEFAULT_LATE,
        )
        schedules = [read_schedule(text, early, late, preset) for text in texts]
        if not stacks:
            _check_steps(schedules, order.call.get("num_inference_steps"))
        orders.append(order)
        cells[order.name] = plan_cells(schedules, stacks)
    num_cells = sum(map(len, cells.values()))
    chosen: Executor = make_executor(executor.value, workers)
    num_repeats = repeats or (_REPEATS_OF_MANY if num_cells > _MANY_CELLS else _DEFAULT_REPEATS)
    budget = QualityBudget(min_psnr_db=min_psnr_db, min_ssim=min_ssim, min_alignment_kept=min_alignment_kept)
    settings = RunSettings(
        pairs=tuple(orders),
        num_repeats=num_repeats,
        budget=budget,
        is_sharing=sharing,
        num_threads=_num_threads(workers, orders),
        cell_timeout_s=cell_timeout,
        memory_limit_mb=memory_limit,
        timing_lock=f"flowblend-{os.getpid()}.lock" if workers > 1 else None,
        num_shown=shown_prompts(num_cells),
    )
    prepare_output_folder(out)
    results = Matrix(
        environment=describe_environment(manager, settings.num_threads),
        run=RunRecord(
            command=shlex.join(["flowblend", *sys.argv[1:]]),
            pairs=[],
            schedules=texts,
            stacks=[list(stack) for stack in stacks],
            depth=depth,
            num_repeats=num_repeats,
            budget=asdict(budget),
            num_planned=num_cells,
            executor=chosen.describe(),
            is_sharing=sharing,
        ),
    )
    batches = [batch for name, specs in cells.items() for batch in order_batches(name, specs)]
    if resume:
        results = resumed(out, results, settings)
        batches = unfinished(batches, results)
    progress = ProgressBar(num_cells, len(results.cells), quiet=as_json)
    try:
        with progress.shown():
            path = measure_matrix(chosen, settings, batches, results, out, progress)
    except KeyboardInterrupt:
        finished = f"{len(results.cells)} of {num_cells} cells were finished"
        kept = f"{finished}; they are in {out}. Go on with --resume." if results.cells else f"{finished}."
        typer.echo(kept, err=True)
        raise
    if as_json:
        typer.echo(json.dumps(results.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_matrix(results, path)
        print_work(results)
    if any(cell.observed == "broken" for cell in results.cells):
        raise typer.Exit(1)


@matrix.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `flowblend matrix run` wrote.")]) -> None:
    """Write DIR/report.html again from DIR/matrix.json and its videos, and show the table."""
    from .folder import write_report
    from .report.terminal import print_matrix
    from .results import read_matrix

    results = read_matrix(folder)
    print_matrix(results, write_report(folder, results))


def _check_steps(schedules: list[StageSchedule], num_inference_steps: int | None) -> None:
    """Raise ``ScheduleError`` now rather than in every cell where runs do not add up to the steps."""
    for one in schedules:
        if num_inference_steps is not None and not one.needs_sigmas:
            one.assignments(num_inference_steps)


def _num_threads(num_workers: int, orders: list[PairOrder]) -> int | None:
    """The embedded pairs' products are tiny, and two threads wait for each other whenever a core is busy."""
    is_tiny = all(order.preset in ("reference", "reference-unet") for order in orders)
    return num_threads_each(num_workers, os.cpu_count(), is_tiny, os.environ.get("OMP_NUM_THREADS"))


def _num_prompts(preset: PairPreset | None, prompt: str | None, count: int | None) -> int:
    """How many of the pair's own prompts; refused before anything is loaded where it has none or too few."""
    if prompt is not None:
        return 1
    if preset is not None and preset.name in ("reference", "reference-unet"):
        return count or _DEFAULT_PROMPTS
    num_own = len(preset.example_prompts) if preset is not None else 0
    if not num_own:
        raise UsageError("this pair has no prompts of its own. Say what to show with --prompt.")
    if count is not None and count > num_own:
        raise UsageError(f"--prompts {count}: this pair has {num_own} of its own.")
    return count or min(num_own, _DEFAULT_PROMPTS)
