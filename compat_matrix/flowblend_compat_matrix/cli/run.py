"""``flowblend matrix run``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import typer

from flowblend_plugins.cli.options import (
    EarlyOption,
    GuidanceScaleOption,
    JsonOption,
    LargeOption,
    LateOption,
    OutOption,
    PixelsOption,
    PromptOption,
    SeedOption,
    SmallOption,
    StepsOption,
    find_preset,
    read_schedule,
)
from flowblend_plugins.errors import UsageError
from flowblend_plugins.files.writing import prepare_output_folder
from flowblend_plugins.manager import FlowblendPluginManager, make_adapters

from ..report.gate import DEFAULT, conclude
from ..results.cells import PAPER_SCHEDULES, CellSpec, parse_stack, plan_cells
from ..results.verdicts import QualityBudget
from ..running import run_options as options
from ..running.planning import (
    all_stacks,
    check_depth,
    combinations,
    families_of,
    left_out,
    shown_prompts,
    suggested_stacks,
    take_turns,
)
from .config_file import ConfigOption


def run(
    ctx: typer.Context,
    config: ConfigOption = None,
    pair: options.PairsOption = None,
    large: LargeOption = None,
    small: SmallOption = None,
    schedule: options.SchedulesOption = None,
    early: EarlyOption = None,
    late: LateOption = None,
    adapter: options.StacksOption = None,
    family: options.FamiliesOption = None,
    all_adapters: options.AllOption = False,
    depth: options.DepthOption = 1,
    run_refused: options.RefusedOption = False,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    seed: SeedOption = 0,
    prompt: PromptOption = None,
    prompts: options.PromptsOption = None,
    seeds: options.SeedsOption = 1,
    repeats: options.RepeatsOption = None,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: options.FramesOption = None,
    min_psnr_db: options.MinPsnrOption = QualityBudget.min_psnr_db,
    min_ssim: options.MinSsimOption = QualityBudget.min_ssim,
    min_alignment_kept: options.MinAlignmentOption = QualityBudget.min_alignment_kept,
    min_speedup: options.MinSpeedupOption = QualityBudget.min_speedup,
    expectations: options.ExpectationsOption = None,
    fail_on: options.FailOnOption = None,
    junit: options.JunitOption = None,
    summary: options.SummaryOption = None,
    executor: options.ExecutorOption = options.ExecutorName.LOCAL,
    ray_address: options.RayAddressOption = None,
    workers: options.WorkersOption = None,
    cell_timeout: options.TimeoutOption = None,
    memory_limit: options.MemoryOption = None,
    sharing: options.SharingOption = True,
    resume: options.ResumeOption = False,
    out: OutOption = Path("out/matrix"),
    as_json: JsonOption = False,
) -> None:
    """Measure every schedule, alone and with every stack of adapters, and write a report.

    Each cell is timed beside its controls in one process, and held against the large denoiser alone at the same seeds.
    DIR receives matrix.json, report.html (one file, videos included) and videos/. Exit code 3 if a cell is not what its
    adapters declare and no expectation says why (see --fail-on), 1 if the run could not be made.

    Examples:

        flowblend matrix run --out out/demo

        flowblend matrix run --schedule LSL --schedule L:10,S:30,L:10 --adapter "unipc(num_inference_steps=25)"

        flowblend matrix run --family feature_caching --out out/caches

        flowblend matrix run --pair reference --pair reference-unet --all-adapters --depth 2 --workers 2 --out out/all

        flowblend matrix run --config matrix.toml --resume

        flowblend matrix run --adapter my_cache --fail-on unexpected --fail-on degraded --junit matrix.xml

        flowblend matrix run --large ./wan14b --small ./wan1.3b --prompt "a cat surfing" --repeats 1
    """
    manager: FlowblendPluginManager = ctx.obj
    names = list(dict.fromkeys(pair or [options.DEFAULT_PAIR]))
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
    if all_adapters and (names_left_out := left_out(manager)):
        typer.echo(f"--all-adapters leaves out {', '.join(names_left_out)}: they suggest no setting.", err=True)
    check_depth(depth, stacks)
    stacks = list(dict.fromkeys([*stacks, *combinations(stacks, depth)]))
    for stack in stacks:
        make_adapters(manager, stack)  # a wrong name or option is told before anything is loaded

    import torch

    from ..measuring.jobs import RunSettings, order_batches
    from ..report.terminal import print_matrix, print_work
    from ..results.environment import describe_environment
    from ..results.matrix_results import Matrix, RunRecord
    from ..running.executors import make_executor
    from ..running.pair_jobs import check_steps, known_outcomes, num_threads, order_pair
    from ..running.resume import resume as resumed
    from ..running.resume import unfinished
    from ..running.session import ProgressBar, measure_matrix

    texts = list(dict.fromkeys(schedule or PAPER_SCHEDULES))
    presets = {name: find_preset(manager, name, large) for name in names}
    schedules = {name: [read_schedule(text, early, late, presets[name]) for text in texts] for name in names}
    specs = {name: plan_cells(schedules[name], stacks) for name in names}
    num_cells = sum(map(len, specs.values()))
    are_many = num_cells > options.MANY_CELLS
    orders, cells = [], dict[str, list[CellSpec]]()
    for name in names:
        order = order_pair(
            presets[name], name, large=large, small=small, prompt=prompt, prompts=prompts, num_seeds=seeds, seed=seed,
            call=call, early=early, late=late, default_prompts=options.DEFAULT_PROMPTS[are_many],
        )  # fmt: skip
        if not stacks:
            check_steps(schedules[name], order.call.get("num_inference_steps"))
        orders.append(order)
        cells[order.name] = specs[name]
    num_repeats = repeats or options.DEFAULT_REPEATS[are_many]
    budget = QualityBudget(
        min_psnr_db=min_psnr_db, min_ssim=min_ssim, min_alignment_kept=min_alignment_kept, min_speedup=min_speedup
    )
    foreseen = known_outcomes(manager, orders, expectations)
    chosen = make_executor(executor.value, workers, ray_address)
    ctx.call_on_close(chosen.close)
    threads = chosen.cores_each or num_threads(chosen.num_workers, orders)
    is_shared = chosen.cores_each is None and take_turns(
        chosen.num_workers, threads or torch.get_num_threads(), os.cpu_count(), torch.cuda.is_available()
    )
    settings = RunSettings(
        pairs=tuple(orders),
        num_repeats=num_repeats,
        budget=budget,
        is_sharing=sharing,
        runs_refused=run_refused,
        num_threads=threads,
        cell_timeout_s=cell_timeout,
        memory_limit_mb=memory_limit,
        timing_lock=f"flowblend-{os.getpid()}.lock" if is_shared else None,
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
            runs_refused=run_refused,
            families=families_of(manager, stacks),
        ),
    )
    together = options.STACKS_TOGETHER[are_many]
    batches = [batch for name, planned in cells.items() for batch in order_batches(name, planned, together)]
    if resume:
        planned = {(name, spec.id) for name, planned_cells in cells.items() for spec in planned_cells}
        results, news = resumed(out, results, settings, planned)
        batches = unfinished(batches, results)
        if news:
            typer.echo(f"--resume: {news}", err=True)
    progress = ProgressBar(num_cells, len(results.cells), quiet=as_json)
    try:
        with progress.shown():
            path = measure_matrix(chosen, settings, batches, results, out, progress, foreseen)
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
    conclude(results, fail_on or DEFAULT, junit, summary)
