"""Another sampler in a pipeline for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from flowblend_plugins.types import Pipeline


@contextlib.contextmanager
def sampler_in_place(pipe: Pipeline, sampler: Any) -> Iterator[None]:
    """``sampler`` as the pipeline's scheduler, from entering until leaving; one that the user sets meanwhile stays."""
    scheduler, entry = pipe.scheduler, pipe.config["scheduler"]
    # register_modules also writes the new class into the pipeline's config, which is what save_pretrained saves.
    pipe.register_modules(scheduler=sampler)
    try:
        yield
    finally:
        if pipe.scheduler is sampler:
            pipe.__dict__["scheduler"] = scheduler
            pipe._internal_dict = type(pipe.config)({**pipe.config, "scheduler": entry})
