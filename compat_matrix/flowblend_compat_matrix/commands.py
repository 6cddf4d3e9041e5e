"""``flowblend matrix run`` and ``flowblend matrix report``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowblend_plugins.cli.options import (
    EarlyOption,
    GuidanceScaleOption,
    JsonOption,
    LargeOption,
    LateOption,
    OutOption,
    PairOption,
    PromptOption,
    SeedOption,
    SmallOption,
    StepsOption,
    find_preset,
    open_pair,
    read_schedule,
)
from flowblend_plugins.cli.output import prepare_output_folder
from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import FlowblendPluginManager, adapters_by_name, make_adapters, metrics_by_name
from flowblend_plugins.presets import PairPreset
from flowblend_plugins.schedule import DEFAULT_EARLY, DEFAULT_LATE
from flowblend_plugins.traits import Family

from .cells import PAPER_SCHEDULES, parse_stack, plan_cells

if TYPE_CHECKING:  # a command line that only prints its help loads no torch
    from .prompts import PromptSet

matrix = typer.Typer(
    help="The compatibility matrix: which schedules and accelerations work together, how fast, and how well.",
    no_args_is_help=True,
)

_DEFAULT_PROMPTS = 8

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
PixelsOption = Annotated[int | None, typer.Option(min=1, help="Pixels.  [default: the pair's]")]


@matrix.command()
def run(
    ctx: typer.Context,
    pair: PairOption = "reference",
    large: LargeOption = None,
    small: SmallOption = None,
    schedule: SchedulesOption = None,
    early: EarlyOption = None,
    late: LateOption = None,
    adapter: StacksOption = None,
    family: FamiliesOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    seed: SeedOption = 0,
    prompt: PromptOption = None,
    prompts: Annotated[
        int | None,
        typer.Option(min=1, help=f"How many of the pair's own prompts.  [default: {_DEFAULT_PROMPTS}, or all]"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed generations of each cell and each of its controls.")] = 3,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="[default: the pair's]")] = None,
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

        flowblend matrix run --large ./wan14b --small ./wan1.3b --prompt "a cat surfing" --repeats 1
    """
    manager: FlowblendPluginManager = ctx.obj
    preset = find_preset(manager, pair, large)
    if large is not None and small is None:
        raise UsageError("--large needs --small: the matrix compares two denoisers.")
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt gives one prompt and --prompts a number of the pair's own. Leave one of them out.")
    call = dict(preset.call_defaults) if preset else {}
    asked = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "height": height, "width": width}
    call |= {name: value for name, value in (asked | {"num_frames": num_frames}).items() if value is not None}
    suggested = [one for asked in family or () for one in suggested_stacks(manager, asked)]
    stacks = [parse_stack(text) for text in (*(adapter or ()), *suggested)]
    for stack in stacks:
        make_adapters(manager, stack)  # a wrong name or option is told before anything is loaded
    schedules = [read_schedule(text, early, late, preset) for text in schedule or PAPER_SCHEDULES]
    if not stacks and "num_inference_steps" in call:
        for one in schedules:
            if not one.needs_sigmas:
                one.assignments(call["num_inference_steps"])
    cells = plan_cells(schedules, stacks)
    from .bench import Bench
    from .environment import describe_environment
    from .folder import FRAMES_PER_SECOND
    from .report.terminal import print_matrix
    from .results import Matrix, PairRecord, RunRecord
    from .runner import MatrixRunner
    from .session import ProgressBar, measure_matrix
    from .verdicts import QualityBudget

    if preset is not None and preset.name == "reference":
        _use_one_thread()
    environment = describe_environment()
    chosen = _choose_prompts(preset, prompt, prompts)
    prepare_output_folder(out)
    bench = Bench(
        load=lambda: _load(manager, pair, large, small),
        prompts=chosen,
        call=call,
        seed=seed,
        steps_are_asked=steps is not None,
        guidance_is_asked=guidance_scale is not None,
    )
    budget = QualityBudget()
    results = Matrix(
        environment=environment,
        run=RunRecord(
            command=shlex.join(["flowblend", *sys.argv[1:]]),
            pairs=[
                PairRecord(
                    name=preset.name if preset and small is None else f"{large or pair} + {small}",
                    pipeline=type(bench.pipe).__name__,
                    makes="videos",
                    prompts=list(chosen.texts),
                    seeds=[seed + number for number in range(len(chosen.texts))],
                    call=call,
                    early=early if early is not None else preset.early if preset else DEFAULT_EARLY,
                    late=late if late is not None else preset.late if preset else DEFAULT_LATE,
                    judge=chosen.judge.description if chosen.judge else None,
                    fps=FRAMES_PER_SECOND,
                )
            ],
            schedules=[one.text for one in schedules],
            stacks=[list(stack) for stack in stacks],
            depth=0,
            num_repeats=repeats,
            budget=asdict(budget),
            num_planned=len(cells),
            executor="this process",
            is_sharing=False,
        ),
    )
    runner = MatrixRunner(bench, results.run.pairs[0].name, metrics_by_name(manager), repeats, budget)
    progress = ProgressBar(cells, repeats, chosen.num_batches, quiet=as_json)
    try:
        with progress.shown(bench):
            path = measure_matrix(runner, cells, results, out, progress)
    except KeyboardInterrupt:
        finished = f"{len(results.cells)} of {len(cells)} cells were finished"
        typer.echo(f"{finished}; they are in {out}." if results.cells else f"{finished}.", err=True)
        raise
    if as_json:
        typer.echo(json.dumps(results.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_matrix(results, path)
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


def suggested_stacks(manager: FlowblendPluginManager, family: Family) -> list[str]:
    """The settings that the adapters of a family suggest.

    Raises:
        UsageError: none does.
    """
    adapters = adapters_by_name(manager).values()
    found = [text for adapter in adapters if adapter.traits.family is family for text in adapter.suggested]
    if not found:
        raise UsageError(
            f"--family {family.value}: no adapter of this family is installed, or none suggests a setting."
        )
    return found


def _use_one_thread() -> None:
    """The reference pair's products are tiny, and two threads wait for each other whenever a core is busy.

    Steady ratios are worth more here than the little that a second thread gives. ``OMP_NUM_THREADS`` overrules this.
    """
    import torch

    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _load(manager: FlowblendPluginManager, pair: str, large: str | None, small: str | None) -> tuple[Any, Any]:
    """The pipeline, and the small denoiser checked against it."""
    from flowblend_plugins.pair import load_denoiser
    from flowblend_plugins.pipeline import denoiser_slot

    opened = open_pair(manager, pair, large, small)
    return opened.pipeline, load_denoiser(opened.small, opened.pipeline, denoiser_slot(opened.pipeline))


def _choose_prompts(preset: PairPreset | None, prompt: str | None, count: int | None) -> PromptSet:
    from .prompts import PromptSet, reference_prompts

    if prompt is not None:
        return PromptSet((prompt,))
    if preset is not None and preset.name == "reference":
        return reference_prompts(count or _DEFAULT_PROMPTS)
    own = preset.example_prompts if preset is not None else ()
    if not own:
        raise UsageError("this pair has no prompts of its own. Say what to show with --prompt.")
    if count is not None and count > len(own):
        raise UsageError(f"--prompts {count}: this pair has {len(own)} of its own.")
    return PromptSet(own[: count or _DEFAULT_PROMPTS])
