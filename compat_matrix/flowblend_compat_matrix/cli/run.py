"""Command ``flowblend matrix run``: measure every cell, write the report, and fail where a cell is unexpected."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import typer

from flowblend_plugins.cli.grouped import grouped
from flowblend_plugins.cli.options import JsonOption, OutOption, PlacementOptions
from flowblend_plugins.files.writing import prepare_output_folder
from flowblend_plugins.manager import FlowblendPluginManager

from ..measuring.jobs import RunSettings
from ..report.gate import DEFAULT, conclude
from ..results.matrix_results import FILE_NAME, Matrix, RunRecord
from ..results.verdicts import QualityBudget
from ..running.executors import Executor, make_executor
from ..running.planning import families_of, shown_prompts, take_turns
from ..running.resume import resume, unfinished
from .config_file import ConfigOption
from .options import BudgetOptions, CallOptions, CellOptions, ExecutionOptions, GateOptions
from .plan import Plan, known_outcomes, plan_run


@grouped
def run(
    ctx: typer.Context,
    which: CellOptions,
    calls: CallOptions,
    placed: PlacementOptions,
    budget: BudgetOptions,
    gate: GateOptions,
    execution: ExecutionOptions,
    config: ConfigOption = None,
    out: OutOption = Path("out/matrix"),
    as_json: JsonOption = False,
) -> None:
    """Measure every schedule, alone and with every stack of adapters, and write a report.

    Each cell is timed beside its baselines in one process, and compared with the large denoiser alone at the same
    seeds. DIR receives matrix.json, report.html (one file, videos included) and videos/. Exit code 3 if a cell is not
    what its adapters declare and no expectation says why (see --fail-on), 1 if the run could not be made.

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
    plan = plan_run(manager, which, calls, placed.placement)
    expectations = known_outcomes(manager, plan.jobs, gate.expectations)
    executor = make_executor(execution.executor.value, execution.workers, execution.ray_address)
    ctx.call_on_close(executor.close)
    settings = _settings(plan, executor, execution, QualityBudget(**asdict(budget)), which.run_refused)
    prepare_output_folder(out)
    if not execution.resume and (out / FILE_NAME).exists():
        typer.echo(f"{out} holds an earlier matrix, which this run replaces. --resume goes on with it.", err=True)
    results, batches = _blank(manager, plan, settings, executor, which), plan.batches()
    if execution.resume:
        results, news = resume(out, results, settings, plan.specs)
        batches = unfinished(batches, results)
        if news:
            typer.echo(f"--resume: {news}", err=True)

    from ..report.terminal import print_matrix, print_work
    from ..running.session import ProgressBar, measure_matrix

    progress = ProgressBar(plan.num_cells, len(results.cells), quiet=as_json)
    try:
        with progress.shown():
            path = measure_matrix(executor, settings, batches, results, out, progress, expectations, plan.specs)
    except KeyboardInterrupt:
        finished = f"{len(results.cells)} of {plan.num_cells} cells were finished"
        kept = f"{finished}; they are in {out}. Go on with --resume." if results.cells else f"{finished}."
        typer.echo(kept, err=True)
        raise
    if as_json:
        typer.echo(json.dumps(results.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_matrix(results, path)
        print_work(results)
    conclude(results, gate.fail_on or DEFAULT, gate.junit, gate.summary)


def _settings(
    plan: Plan, executor: Executor, execution: ExecutionOptions, budget: QualityBudget, runs_refused: bool
) -> RunSettings:
    """Settings of every cell; workers that share cores or an accelerator take turns at timing."""
    import torch

    threads = executor.cores_each or plan.num_threads(executor.num_workers)
    is_crowded = executor.cores_each is None and take_turns(
        executor.num_workers, threads or torch.get_num_threads(), os.cpu_count(), torch.cuda.is_available()
    )
    return RunSettings(
        pairs=plan.jobs,
        num_repeats=plan.num_repeats,
        budget=budget,
        is_sharing=execution.sharing,
        runs_refused=runs_refused,
        num_threads=threads,
        cell_timeout_s=execution.cell_timeout,
        memory_limit_mb=execution.memory_limit,
        timing_lock=f"flowblend-{os.getpid()}.lock" if is_crowded else None,
        num_shown=shown_prompts(plan.num_cells),
    )


def _blank(
    manager: FlowblendPluginManager, plan: Plan, settings: RunSettings, executor: Executor, which: CellOptions
) -> Matrix:
    """The results before anything is measured."""
    from ..results.environment import describe_environment

    return Matrix(
        environment=describe_environment(manager, settings.num_threads),
        run=RunRecord(
            command=shlex.join(["flowblend", *sys.argv[1:]]),
            pairs=[],
            schedules=which.schedules,
            stacks=[list(stack) for stack in plan.stacks],
            depth=which.depth,
            num_repeats=settings.num_repeats,
            budget=asdict(settings.budget),
            num_planned=plan.num_cells,
            executor=executor.describe(),
            is_sharing=settings.is_sharing,
            runs_refused=settings.runs_refused,
            looks=list(plan.looks),
            families=families_of(manager, plan.stacks),
        ),
    )
