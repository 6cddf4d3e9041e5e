"""Calling the pipeline under a progress bar, and writing what it gives."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..contract.markers import hookimpl
from ..errors import FlowBlendError, UsageError
from ..step import StepContext
from ..types import Keywords, Output, Pipeline


def generate(pipeline: Pipeline, arguments: Keywords, seed: int, progress: Progress) -> Output:
    """Call the pipeline, with a progress bar.

    Raises:
        UsageError: the pipeline refuses the arguments, or makes neither a video nor a still.
    """
    import torch

    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    try:
        with progress.shown():
            result = pipeline(**arguments, generator=generator, output_type="np")
    except (ValueError, TypeError) as error:
        if isinstance(error, FlowBlendError):
            raise
        raise UsageError(f"{type(pipeline).__name__} refuses this call: {error}") from error
    if not hasattr(result, "frames") and not hasattr(result, "images"):
        raise UsageError(f"{type(pipeline).__name__} makes neither a video nor a still, so there is nothing to write.")
    return result


def write_output(result: Output, path: Path, fps: float) -> None:
    """Write the first video, or the first still, of what :func:`generate` gave."""
    from ..files.video import write_mp4, write_png

    if hasattr(result, "frames"):
        write_mp4(result.frames[0], path, fps)
    else:
        write_png(result.images[0], path)


class Progress:
    """A plugin of the blend: a bar that says which denoiser is at work."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self.seconds: float = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        from rich import progress as bars
        from rich.console import Console

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(),
        )
        quiet = self._quiet or not sys.stderr.isatty()  # in a log, all that is left of a bar is noise
        with bars.Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as self._bar:
            self._task = self._bar.add_task("preparing", total=None)
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
