"""Train a reference pair stage by stage; a stage that was stopped goes on where it was.

A stage trains a module, or writes the shards of a data set; it keeps what it has in a folder of its own. On CPUs the
stages of one phase run side by side, one process and one thread each, and a stage that stands alone is shared by two
processes; on a GPU they run one after the other. A stage that is complete is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from .stage import LossFunction, Stage, StageRecord, StageSettings, join, rank

_PROGRESS = "progress.json"
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The part of one stage that one process does.

    Attributes:
        name: of the stage.
        out: folder with a folder for every stage.
        minutes: time of a stage that trains (`stage.clock`); ``max_steps`` bounds it too (0: no limit).
        rank, world_size: this process among those that share the stage.
        num_shards: that a data set has.
    """

    name: str
    out: Path
    minutes: float = 1.0
    device: torch.device = _CPU
    rank: int = 0
    world_size: int = 1
    num_shards: int = 1
    max_steps: int = 0

    @property
    def folder(self) -> Path:
        """Checkpoints, logs and data of this stage."""
        return self.out / self.name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages of one pair, and how each of them is done.

    Attributes:
        module: name of the module that is run with ``python -m``, whose text says what it trains.
        phases: names of the stages; those of one phase depend on earlier phases only.
        modules: for each stage that trains, what makes its module and its loss.
        settings: how each of these is trained.
        shares: fraction of the minutes that each of these takes.
        data: for each stage that writes a data set, what makes the function that writes one shard.
        export: writes the weights, from the folder of the stages into another one.
        minutes, num_shards: unless the command line says otherwise.
        weights: folder of the exported weights, likewise; ``None`` for one beside the stages.
    """

    module: str
    phases: tuple[tuple[str, ...], ...]
    modules: Mapping[str, Callable[[Job], tuple[nn.Module, LossFunction]]]
    settings: Mapping[str, StageSettings]
    shares: Mapping[str, float]
    data: Mapping[str, Callable[[Job], Callable[[int], None]]]
    export: Callable[[Path, Path], None]
    minutes: float
    num_shards: int
    weights: Path | None = None


def run_job(recipe: Recipe, job: Job) -> None:
    """Do one stage, or this process' part of it."""
    torch.manual_seed(0)
    job.folder.mkdir(parents=True, exist_ok=True)
    if job.name in recipe.data:
        write_shard = recipe.data[job.name](job)
        for shard in range(job.rank, job.num_shards, job.world_size):
            write_shard(shard)
            _say(job, shard + 1, 0.0, (shard + 1) / job.num_shards)
        return
    module, loss_function = recipe.modules[job.name](job)
    settings = replace(recipe.settings[job.name], minutes=job.minutes)
    training = Stage(job.name, module, job.folder, settings)
    torch.manual_seed(1000 * training.record.steps + job.rank)

    def report(record: StageRecord, progress: float) -> None:
        if rank() == 0:
            _say(job, record.steps, record.loss, min(1.0, progress))

    training.run(loss_function, report, max_steps=job.max_steps)


def _say(job: Job, steps: int, loss: float, progress: float) -> None:
    (job.folder / _PROGRESS).write_text(json.dumps({"steps": steps, "loss": loss, "progress": progress}))
    print(f"{job.name}: step {steps}, loss {loss:.4f}, {100 * progress:.1f} %", flush=True)


def is_complete(recipe: Recipe, job: Job) -> bool:
    """Whether a stage has had its time, or has all its shards."""
    if job.name in recipe.data:
        return len(list(job.folder.glob("*-[0-9]*.safetensors"))) >= job.num_shards
    record = job.folder / "record.json"
    return record.exists() and json.loads(record.read_text())["seconds"] >= 60.0 * job.minutes


def train(recipe: Recipe, out: Path, weights: Path, minutes: float, device: torch.device, num_shards: int) -> None:
    """Run every stage that is not complete, then export."""
    columns = (TextColumn("{task.description:>10}"), BarColumn(), TextColumn("{task.fields[state]}"))
    num_workers = min(2, os.cpu_count() or 1) if device.type == "cpu" else 1
    with Progress(*columns, TimeRemainingColumn()) as progress:
        for phase in recipe.phases:
            shares = {name: minutes * recipe.shares.get(name, 0.0) for name in phase}
            jobs = [
                Job(name=name, out=out, minutes=share, device=device, num_shards=num_shards)
                for name, share in shares.items()
            ]
            jobs = [job for job in jobs if not is_complete(recipe, job)]
            if len(jobs) == 1:
                jobs = [replace(jobs[0], world_size=num_workers)]
            for together in [jobs] if num_workers > 1 else [[job] for job in jobs]:
                if together:
                    _watch(together, [process for job in together for process in _start(recipe, job)], progress)
    recipe.export(out, weights)


def _start(recipe: Recipe, job: Job) -> list[subprocess.Popen[bytes]]:
    meeting_point = job.out / f"meeting-{job.name}-{os.getpid()}-{time.monotonic_ns()}"
    job.folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for worker in range(job.world_size):
        command = [sys.executable, "-m", recipe.module, "--out", str(job.out), "--device", str(job.device)]
        command += ["--job", job.name, "--minutes", str(job.minutes), "--shards", str(job.num_shards)]
        command += ["--rank", str(worker), "--world-size", str(job.world_size), "--meeting-point", str(meeting_point)]
        with (job.folder / f"log-{worker}.txt").open("ab") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
    return processes


def _watch(jobs: list[Job], processes: list[subprocess.Popen[bytes]], progress: Progress) -> None:
    bars = {job.name: progress.add_task(job.name, total=1.0, state="starting") for job in jobs}
    try:
        while True:
            codes = [process.poll() for process in processes]
            for job in jobs:
                path = job.folder / _PROGRESS
                if path.exists() and (text := path.read_text()):
                    state = json.loads(text)
                    said = f"step {state['steps']}, loss {state['loss']:.4f}"
                    progress.update(bars[job.name], completed=state["progress"], state=said)
            if any(code not in (None, 0) for code in codes):
                names = " and ".join(job.name for job in jobs)
                raise SystemExit(f"training {names} failed; see log-*.txt in the stages' folders in {jobs[0].out}")
            if all(code == 0 for code in codes):
                return
            time.sleep(1.0)
    finally:
        for process in processes:
            process.terminate()


def main(recipe: Recipe, text: str | None) -> None:
    """Read the command line and train; ``text`` describes the module that is run."""
    parser = argparse.ArgumentParser(prog=f"python -m {recipe.module}", description=(text or "").split("\n\n")[0])
    stages = [name for phase in recipe.phases for name in phase]
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and data; resumed if it exists")
    parser.add_argument("--weights", type=Path, default=recipe.weights, help="where the weights go")
    parser.add_argument("--minutes", type=float, default=recipe.minutes, help="for all stages, or for the one of --job")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--job", choices=[*stages, "export"], help="run one stage only, in this process")
    parser.add_argument("--shards", type=int, default=recipe.num_shards, help="of each data set")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--world-size", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--meeting-point", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    name = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    device, weights = torch.device(name), given.weights or given.out / "weights"
    given.out.mkdir(parents=True, exist_ok=True)
    if given.job == "export":
        recipe.export(given.out, weights)
    elif given.job is None:
        train(recipe, given.out, weights, given.minutes, device, given.shards)
    else:
        if device.type == "cpu":
            torch.set_num_threads(1)
        if given.world_size > 1 and given.job not in recipe.data:
            join(given.rank, given.world_size, given.meeting_point)
        job = Job(
            name=given.job, out=given.out, minutes=given.minutes, device=device, rank=given.rank,
            world_size=given.world_size, num_shards=given.shards,
        )  # fmt: skip
        run_job(recipe, job)
