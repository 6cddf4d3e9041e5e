"""Train the reference pair from nothing, or go on where the last run stopped.

``python -m flowblend_research.training.wan.train --out DIR [--minutes N] [--device auto]``

Stages: ``codec``, then ``text`` and ``classifier``, then ``data`` (encode the world once), then ``small`` and
``large``, then ``export``. On CPUs the stages of one line run side by side, one process and one thread each, and a
stage that stands alone is shared by two processes; on a GPU they run one after the other. Each stage keeps its
checkpoint in a folder of its own in DIR; a stage that is complete is not run again. Weights and the training card
are written to DIR/weights unless ``--weights`` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flowblend_compat_matrix.reference.classifier import AttributeClassifier, classifier_batch, classifier_loss
from flowblend_compat_matrix.reference.text import TextTrainer, caption_batch, encode_text

from .. import stage as stages
from ..stage import LossFunction, Stage, StageRecord, StageSettings
from .card import write_card
from .codec import codec_batch, codec_loss, make_codec, normalise, prepare_for_training, use_fast_norms
from .dataset import LatentDataset, encode_shard, load_dataset
from .denoisers import CAPTION_DROPOUT, LARGE, SMALL, flow_matching_loss, make_denoiser
from .export import export, load_codec, load_text

DEFAULT_MINUTES = 110.0
PHASES: tuple[tuple[str, ...], ...] = (("codec",), ("text", "classifier"), ("data",), ("small", "large"))
SHARES = {"codec": 0.17, "text": 0.035, "classifier": 0.11, "small": 0.66, "large": 0.66}
"""Each stage's share of the minutes; those of one phase run side by side. The data takes what it takes."""
SHARD_SIZE = 1024
DEFAULT_SHARDS = 48
_PROGRESS = "progress.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One worker process's order."""

    name: str
    out: Path
    minutes: float
    device: torch.device
    rank: int = 0
    world_size: int = 1
    num_shards: int = DEFAULT_SHARDS
    max_steps: int = 0


def settings_for(name: str, minutes: float) -> StageSettings:
    """How each stage is trained; found by short trials on the CPU."""
    if name == "codec":
        return StageSettings(
            minutes=minutes,
            learning_rate=2e-3,
            matrix_learning_rate=0.02,
            weight_decay=0.0,
            warmup_steps=30,
            decay_start=0.4,
            ema_half_life_steps=60,
        )
    if name == "text":
        return StageSettings(
            minutes=minutes, learning_rate=2e-3, warmup_steps=100, decay_start=0.35, ema_half_life_steps=50
        )
    if name == "classifier":
        return StageSettings(
            minutes=minutes,
            learning_rate=2e-3,
            matrix_learning_rate=0.02,
            warmup_steps=50,
            decay_start=0.4,
            ema_half_life_steps=50,
        )
    return StageSettings(
        minutes=minutes, learning_rate=1e-3, matrix_learning_rate=0.02, warmup_steps=100, ema_half_life_steps=300
    )


def _report_to(folder: Path, job: Job) -> Callable[[StageRecord, float], None]:
    def report(record: StageRecord, progress: float) -> None:
        if stages.rank() != 0:
            return
        state = {"steps": record.steps, "loss": record.loss, "progress": min(1.0, progress)}
        (folder / _PROGRESS).write_text(json.dumps(state))
        print(f"{job.name}: step {record.steps}, loss {record.loss:.4f}, {100 * progress:.1f} %", flush=True)

    return report


def compiled(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module through `torch.compile` (twice as fast here), or as it is where there is no compiler."""
    if device.type == "cpu" and not stages.use_bfloat16_products(module):
        return module
    try:
        faster = torch.compile(module, dynamic=False)
        torch._dynamo.config.suppress_errors = True
    except RuntimeError:
        return module
    return faster  # pyright: ignore[reportReturnType]


def _codec(job: Job) -> tuple[torch.nn.Module, LossFunction]:
    codec = stages.move(prepare_for_training(make_codec()), job.device)
    use_fast_norms(codec)
    seed = 1 + 10 * job.rank
    size = 4 if job.device.type == "cpu" else 16
    return codec, lambda step: codec_loss(codec, codec_batch(step, seed, size, job.device), step)


def _text(job: Job) -> tuple[torch.nn.Module, LossFunction]:
    trainer = TextTrainer().to(job.device)
    return trainer, lambda step: trainer.loss(caption_batch((3, step), 128))[0]


def _classifier(job: Job) -> tuple[torch.nn.Module, LossFunction]:
    classifier = AttributeClassifier().to(job.device)
    codec = stages.move(load_codec(job.out), job.device)

    def loss(step: int) -> torch.Tensor:
        videos, labels = classifier_batch((5, step), 24)
        videos, labels = videos.to(job.device), {name: label.to(job.device) for name, label in labels.items()}
        if step % 4 == 3:  # a few as it will see generated videos: through the codec
            with torch.no_grad(), torch.autocast(job.device.type, torch.bfloat16):
                decoded = codec.decode(
                    codec.encode(videos[:8] * 2.0 - 1.0, return_dict=False)[0].mode(), return_dict=False
                )[0]
            videos[:8] = decoded.float() * 0.5 + 0.5
        return classifier_loss(classifier, videos, labels)

    return classifier, loss


def _denoiser(job: Job) -> tuple[torch.nn.Module, LossFunction]:
    denoiser = stages.move(make_denoiser(LARGE if job.name == "large" else SMALL), job.device)
    faster = compiled(denoiser, job.device)
    codec, text = load_codec(job.out), load_text(job.out).to(job.device)
    raw = load_dataset(job.out / "data")
    data = LatentDataset(normalise(codec, raw.latents.float()).half().to(job.device), raw.captions)
    size = 32 if job.device.type == "cpu" else 256

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng((11, step, job.rank))
        latents, texts = data.batch(rng, size)
        texts = ["" if rng.random() < CAPTION_DROPOUT else one for one in texts]
        with torch.no_grad():
            prompts = encode_text(text.tokenizer, text.encoder, texts)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        with torch.autocast(job.device.type, torch.bfloat16, enabled=job.device.type == "cuda"):
            return flow_matching_loss(faster, latents, prompts, generator)

    return denoiser, loss


_BUILDERS = {"codec": _codec, "text": _text, "classifier": _classifier, "small": _denoiser, "large": _denoiser}


def encode_data(job: Job) -> None:
    """Encode this worker's part of the shards."""
    codec = stages.move(load_codec(job.out), job.device)
    use_fast_norms(codec)
    for shard in range(job.rank, job.num_shards, job.world_size):
        encode_shard(codec, job.out / "data", shard, SHARD_SIZE, job.device)
        state = {"steps": shard + 1, "loss": 0.0, "progress": (shard + 1) / job.num_shards}
        (job.out / "data" / _PROGRESS).write_text(json.dumps(state))


def run_job(job: Job) -> None:
    """Do one stage in this process."""
    torch.manual_seed(0)
    if job.name == "data":
        encode_data(job)
        return
    module, loss_function = _BUILDERS[job.name](job)
    folder = job.out / job.name
    training = Stage(job.name, module, folder, settings_for(job.name, job.minutes))
    torch.manual_seed(1000 * training.record.steps + job.rank)
    training.run(loss_function, _report_to(folder, job), max_steps=job.max_steps)


def is_complete(name: str, out: Path, minutes: float, num_shards: int = DEFAULT_SHARDS) -> bool:
    """Whether a stage has had its time (or all its data)."""
    if name == "data":
        return len(list((out / "data").glob("latents-*.safetensors"))) >= num_shards
    record = out / name / "record.json"
    return record.exists() and json.loads(record.read_text())["seconds"] >= 60.0 * minutes


def _start(job: Job, out: Path) -> list[subprocess.Popen[bytes]]:
    meeting_point = out / f"meeting-{job.name}-{os.getpid()}-{time.monotonic_ns()}"
    (out / job.name).mkdir(parents=True, exist_ok=True)
    processes = []
    for worker in range(job.world_size):
        command = [sys.executable, "-m", "flowblend_research.training.wan.train", "--out", str(out)]
        command += ["--device", str(job.device), "--job", job.name, "--minutes", str(job.minutes)]
        command += ["--rank", str(worker), "--world-size", str(job.world_size), "--meeting-point", str(meeting_point)]
        command += ["--shards", str(job.num_shards)]
        with (out / job.name / f"log-{worker}.txt").open("ab") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
    return processes


def _watch(jobs: list[Job], processes: list[subprocess.Popen[bytes]], progress: Progress) -> None:
    bars: dict[str, TaskID] = {job.name: progress.add_task(job.name, total=1.0, state="starting") for job in jobs}
    try:
        while True:
            codes = [process.poll() for process in processes]
            for job in jobs:
                path = job.out / job.name / _PROGRESS
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


def train(out: Path, weights: Path, minutes: float, device: torch.device, num_shards: int = DEFAULT_SHARDS) -> None:
    """Run every stage that is not complete, then export and write the card."""
    columns = (TextColumn("{task.description:>10}"), BarColumn(), TextColumn("{task.fields[state]}"))
    num_workers = min(2, os.cpu_count() or 1) if device.type == "cpu" else 1
    with Progress(*columns, TimeRemainingColumn()) as progress:
        for phase in PHASES:
            budget = {name: minutes * SHARES.get(name, 0.0) for name in phase}
            names = [name for name in phase if not is_complete(name, out, budget[name], num_shards)]
            world_size = num_workers if len(names) == 1 else 1
            together = [names] if num_workers > 1 else [[name] for name in names]
            for group in together:
                jobs = [
                    Job(
                        name=name,
                        out=out,
                        minutes=budget[name],
                        device=device,
                        world_size=world_size,
                        num_shards=num_shards,
                    )
                    for name in group
                ]
                if jobs:
                    _watch(jobs, [process for job in jobs for process in _start(job, out)], progress)
    export(out, weights)
    write_card(out, weights, device)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="flowblend-train-reference", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and data; resumed if it exists")
    parser.add_argument("--weights", type=Path, default=None, help="where the weights go (default: OUT/weights)")
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="wall-clock time for all stages")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--job", choices=[*_BUILDERS, "data", "export"], help="run one stage in this process, for --minutes"
    )
    parser.add_argument(
        "--shards", type=int, default=DEFAULT_SHARDS, help=f"how many times {SHARD_SIZE} videos to encode"
    )
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--world-size", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--meeting-point", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    name = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    device = torch.device(name)
    out: Path = arguments.out
    weights: Path = arguments.weights or out / "weights"
    out.mkdir(parents=True, exist_ok=True)
    if arguments.job == "export":
        export(out, weights)
        write_card(out, weights, device)
    elif arguments.job:
        torch.set_num_threads(1)
        if arguments.world_size > 1 and arguments.job != "data":
            stages.join(arguments.rank, arguments.world_size, arguments.meeting_point)
        run_job(
            Job(
                name=arguments.job,
                out=out,
                minutes=arguments.minutes,
                device=device,
                rank=arguments.rank,
                world_size=arguments.world_size,
                num_shards=arguments.shards,
            )
        )
    else:
        train(out, weights, arguments.minutes, device, arguments.shards)


if __name__ == "__main__":
    main()
