"""Calling the pipeline under a progress bar, and writing what it gives."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..contract.markers import hookimpl
from ..errors import FlowBlendError, UsageError
from ..step import StepContext
from ..types import Keywords, Output, Pipeline

if TYPE_CHECKING:
    from rich import progress as bars

    from ..calibration.similarity import Video


def generate(pipeline: Pipeline, arguments: Keywords, seed: int, progress: Progress, what: str = "preparing") -> Output:
    """Call the pipeline, with a progress bar; ``what`` stands beside it until a blended denoiser is called.

    Raises:
        UsageError: the pipeline refuses the arguments, or makes neither a video nor a still.
    """
    import torch

    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    try:
        with progress.shown(what):
            result = pipeline(**arguments, generator=generator, output_type="np")
    except (ValueError, TypeError) as error:
        if isinstance(error, FlowBlendError):
            raise
        raise UsageError(f"{type(pipeline).__name__} refuses this call: {error}") from error
    if not hasattr(result, "frames") and not hasattr(result, "images"):
        raise UsageError(f"{type(pipeline).__name__} makes neither a video nor a still, so there is nothing to write.")
    return result


def refuse_unknown_arguments(pipeline: Pipeline, names: Iterable[str]) -> None:
    """Raise ``UsageError`` where the pipeline's call has no such arguments, by the options that give them."""
    accepted = inspect.signature(type(pipeline).__call__).parameters
    unknown = sorted(name for name in names if name not in accepted)
    if unknown:
        options = ", ".join("--steps" if n == "num_inference_steps" else f"--{n.replace('_', '-')}" for n in unknown)
        raise UsageError(f"{type(pipeline).__name__} does not take {options}. Leave it out.")


def write_output(pixels: Video, path: Path, fps: float) -> None:
    """Write a video ``[F, H, W, 3]``, or a still ``[H, W, 3]``."""
    from ..files.video import write_mp4, write_png

    if pixels.ndim == 4:
        write_mp4(pixels, path, fps)
    else:
        write_png(pixels, path)


class Progress:
    """A plugin of the blend: a bar that says which denoiser is at work."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: bars.Progress | None = None
        self.seconds: float = 0.0

    @contextmanager
    def shown(self, what: str) -> Iterator[None]:
        """Show a bar and a spinner, with ``what`` beside them, and take the time."""
        from rich import progress as bars
        from rich.console import Console

        columns = (
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(),
        )
        quiet = self._quiet or not sys.stderr.isatty()  # in a log, all that is left of a bar is noise
        with bars.Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as self._bar:
            self._task = self._bar.add_task(what, total=None)
            started = time.perf_counter()
            yield
            self.seconds = time.perf_counter() - started

    @hookimpl
    def flowblend_denoiser_called(self, step: StepContext) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=step.step_index + 1,
                total=step.num_inference_steps,
                description=f"{step.stage.value:<12} {step.denoiser}",
            )
