"""Another sampler in a pipeline for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flowblend_plugins.types import Pipeline, Scheduler


@contextlib.contextmanager
def sampler_in_place(pipe: Pipeline, sampler: Scheduler) -> Iterator[None]:
    """``sampler`` as the pipeline's scheduler, from entering until leaving; one that the user sets meanwhile stays."""
    scheduler, config = pipe.scheduler, pipe._internal_dict
    # register_modules also writes the new class into the pipeline's config, which is what save_pretrained saves.
    pipe.register_modules(scheduler=sampler)
    try:
        yield
    finally:
        if pipe.scheduler is sampler:
            pipe.__dict__["scheduler"] = scheduler
            now = {**pipe.config, "scheduler": config["scheduler"]}
            pipe._internal_dict = config if now == dict(config) else type(config)(now)
