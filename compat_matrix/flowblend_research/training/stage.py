"""One training stage: a loop against a clock that can be stopped at any step and picked up again."""

from __future__ import annotations

import json
import math
import time
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from torch import nn

from .optimiser import make_optimisers

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LossFunction = Callable[[int], torch.Tensor]
"""Takes the step's number, which seeds its data, and returns the loss to minimise."""


@dataclass(kw_only=True)
class StageRecord:
    """Progress of a stage so far; written as ``record.json`` beside its checkpoint."""

    name: str
    steps: int = 0
    seconds: float = 0.0
    loss: float = math.nan  # running mean over about the last hundred steps
    losses: list[tuple[int, float]] = field(default_factory=list)
    facts: dict[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Settings that a stage is trained with; after ``minutes`` (of `clock`) the learning rate is a hundredth."""

    minutes: float = 1.0
    learning_rate: float
    matrix_learning_rate: float | None = None  # Muon's, for weights of two or more dimensions; None: AdamW for all
    weight_decay: float = 0.01
    warmup_steps: int = 200
    decay_start: float = 0.5  # fraction of the time after which the learning rate falls (cosine)
    clip_norm: float = 1.0
    ema_half_life_steps: float = 500.0
    checkpoint_seconds: float = 60.0


def learning_rate_factor(step: int, progress: float, settings: StageSettings) -> float:
    """Warm up by steps, hold, then fall along a cosine to one hundredth. ``progress`` is elapsed time in 0..1."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    if progress <= settings.decay_start:
        return warm
    fallen = min(1.0, (progress - settings.decay_start) / (1.0 - settings.decay_start))
    return warm * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * fallen)))


def use_bfloat16_products(module: nn.Module) -> bool:
    """Let the linear layers of a CPU that can (AMX, AVX512-BF16) multiply in bfloat16; the rest stays float32.

    Autocast would keep activations in bfloat16 too, which is slower than float32 here: what the products gain, the
    mixed elementwise operations lose. Returns whether anything was changed. Parameters are untouched.
    """
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return False

    def forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.bfloat16()
        return functional.linear(x.bfloat16(), self.weight.bfloat16(), bias).float()

    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.forward = types.MethodType(forward, layer)
    return True


def compiled(module: nn.Module, device: torch.device) -> nn.Module:
    """The module through `torch.compile` where that pays (with AMX and on GPUs: twice as fast), or as it is."""
    if device.type == "cpu" and not (use_bfloat16_products(module) and torch.cpu._is_amx_tile_supported()):
        return module
    try:
        faster = torch.compile(module, dynamic=False)
        torch._dynamo.config.suppress_errors = True
    except RuntimeError:
        return module
    return faster  # pyright: ignore[reportReturnType]


def join(rank: int, world_size: int, meeting_point: Path) -> None:
    """Make this process one of ``world_size`` that train one stage together on the CPU, averaging their gradients."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point.resolve()}", rank=rank, world_size=world_size
    )


def move(module: ModuleT, device: torch.device) -> ModuleT:
    """`nn.Module.to`, which diffusers overrides with types that no checker understands."""
    nn.Module.to(module, device)
    return module


def rank() -> int:
    """Number of this process among those that train together; 0 when alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def clock(device: torch.device) -> float:
    """Seconds that count as training: CPU time of this process, or wall-clock time where an accelerator works.

    Neither other work on the cores nor a pause (SIGSTOP) uses up the time of a stage.
    """
    return time.process_time() if device.type == "cpu" else time.monotonic()


def world_size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    # Clones, because safetensors refuses memory that is shared (tied embeddings).
    partial = path.with_suffix(".partial")
    save_file({name: tensor.clone().contiguous().cpu() for name, tensor in tensors.items()}, partial)
    partial.replace(path)


class Stage:
    """A module in training, with its optimiser, its moving average and its checkpoint in ``folder``."""

    def __init__(self, name: str, module: nn.Module, folder: Path, settings: StageSettings) -> None:
        self.module = module
        self.folder = folder
        self.settings = settings
        self.record = StageRecord(name=name)
        self.average = {key: value.float().clone() for key, value in _state(module).items()}
        self.optimisers = make_optimisers(
            module, settings.learning_rate, settings.matrix_learning_rate, settings.weight_decay
        )
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "record.json").exists():
            self._resume()

    @property
    def progress(self) -> float:
        """Elapsed share of the stage's time."""
        return self.record.seconds / (60.0 * self.settings.minutes)

    def _resume(self) -> None:
        device = next(self.module.parameters()).device
        self.record = StageRecord(**json.loads((self.folder / "record.json").read_text()))
        average = load_file(self.folder / "average.safetensors", device=str(device))
        self.average = {name: tensor.float() for name, tensor in average.items()}
        if not (self.folder / "model.safetensors").exists():  # what `checkpoints` keeps; momenta are soon rebuilt
            self.module.load_state_dict(self.average)
            return
        self.module.load_state_dict(load_file(self.folder / "model.safetensors", device=str(device)))
        states = torch.load(self.folder / "optimisers.pt", weights_only=True, map_location=device)
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)

    def checkpoint(self) -> None:
        """Write everything needed to go on. ``record.json`` comes last, so that a torn write is not resumed."""
        if rank() != 0:
            return
        _save(_state(self.module), self.folder / "model.safetensors")
        _save(self.average, self.folder / "average.safetensors")
        torch.save([optimiser.state_dict() for optimiser in self.optimisers], self.folder / "optimisers.partial")
        (self.folder / "optimisers.partial").replace(self.folder / "optimisers.pt")
        (self.folder / "record.json").write_text(json.dumps(asdict(self.record)))

    def _agree(self, seconds: float) -> float:
        """Average the gradients over the processes; returns the first one's time, so that all stop at one step."""
        if world_size() == 1:
            return seconds
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        own = torch.tensor([seconds if rank() == 0 else 0.0])
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), own])
        distributed.all_reduce(flat)
        for gradient, part in zip(
            gradients, (flat[:-1] / world_size()).split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
        return float(flat[-1])

    def _step(self, loss_function: LossFunction) -> float:
        record, settings = self.record, self.settings
        device = next(self.module.parameters()).device
        started = clock(device)
        factor = learning_rate_factor(record.steps, self.progress, settings)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = group["full_lr"] * factor
        loss = loss_function(record.steps)
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        seconds = self._agree(clock(device) - started)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip_norm)
        record.seconds += seconds
        if not torch.isfinite(norm):
            self._skip()
            return float(loss.detach())
        for optimiser in self.optimisers:
            optimiser.step()
        # The average forgets faster at first, so that an early stop is not haunted by the initial weights.
        half_life = min(settings.ema_half_life_steps, 1.0 + 0.1 * record.steps)
        weight = 1.0 - 0.5 ** (1.0 / half_life)
        for key, value in _state(self.module).items():
            self.average[key].lerp_(value.float(), weight)
        record.steps += 1
        return float(loss.detach())

    def _skip(self) -> None:
        """Leave out a step whose gradient is not finite; raises `FloatingPointError` when more than a few are."""
        skipped = int(self.record.facts.get("skipped_steps", 0)) + 1
        self.record.facts["skipped_steps"] = skipped
        self.record.steps += 1
        if skipped > 10 + self.record.steps // 100:
            raise FloatingPointError(
                f"stage {self.record.name}: {skipped} of {self.record.steps} gradients were not finite; "
                f"lower the learning rate, or remove {self.folder} and start the stage again"
            )

    def run(
        self, loss_function: LossFunction, report: Callable[[StageRecord, float], None], max_steps: int = 0
    ) -> None:
        """Train until the time is used up (or for ``max_steps``), then load the moving average into the module."""
        record = self.record
        self.module.train()
        last_report = last_checkpoint = time.monotonic()
        done = 0
        while self.progress < 1.0 and (max_steps == 0 or done < max_steps):
            loss = self._step(loss_function)
            done += 1
            if math.isfinite(loss):
                record.loss = loss if math.isnan(record.loss) else 0.98 * record.loss + 0.02 * loss
            now = time.monotonic()
            if now - last_report > 15.0:
                record.losses.append((record.steps, round(record.loss, 5)))
                report(record, self.progress)
                last_report = now
            if now - last_checkpoint > self.settings.checkpoint_seconds:
                self.checkpoint()
                last_checkpoint = time.monotonic()
        self.checkpoint()
        report(record, self.progress)
        self.load_average()

    def load_average(self) -> None:
        """Put the moving average into the module, which is then ready for use."""
        self.module.load_state_dict(self.average)
        self.module.eval()


def load_average(module: ModuleT, folder: Path) -> ModuleT:
    """Load the moving average of a stage's weights, where the stage has been started, and freeze the module."""
    path = folder / "average.safetensors"
    if path.exists():
        module.load_state_dict(load_file(path))
    module.eval().requires_grad_(False)
    return module
