"""Load a pair for a bench, as often as it asks for one that nothing has touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from flowblend_plugins.cli.options import find_preset
from flowblend_plugins.manager import FlowblendPluginManager
from flowblend_plugins.pairs.loading import load_denoiser
from flowblend_plugins.pairs.open import open_pair
from flowblend_plugins.pairs.placement import Placement
from flowblend_plugins.pipelines.components import denoiser_slot
from flowblend_plugins.types import Pipeline

from .bench import Bench
from .prompts import PromptSet, own_prompts

FIRST_PROMPT = 256
"""Studies take the pair's prompts from here on, none of which a matrix run measures with."""
SEED = 50_000
"""First seed of their noise, for the same reason."""


class PairChoice(NamedTuple):
    """A registered pair by name, hub ids or folders that take the place of its denoisers, and where it computes."""

    pair: str
    large: str | None = None
    small: str | None = None
    placement: Placement | None = None


def pair_loader(manager: FlowblendPluginManager, chosen: PairChoice) -> Callable[[], tuple[Pipeline, nn.Module]]:
    """A function that loads the pipeline and the small denoiser, anew at every call."""
    preset = find_preset(manager, chosen.pair, chosen.large)

    def load() -> tuple[Pipeline, nn.Module]:
        opened = open_pair(preset, chosen.large, chosen.small, placement=chosen.placement)
        return opened.pipeline, load_denoiser(opened.small, opened.pipeline, denoiser_slot(opened.pipeline))

    return load


def open_bench(
    manager: FlowblendPluginManager,
    chosen: PairChoice,
    num_prompts: int,
    texts: tuple[str, ...] = (),
    *,
    first_prompt: int = FIRST_PROMPT,
    seed: int = SEED,
    in_batches: bool = False,
) -> Bench:
    """A bench outside a matrix run.

    Args:
        manager: knows the registered pairs.
        chosen: the pair.
        num_prompts: of the pair's own, from ``first_prompt`` on; ``texts`` are shown instead where there are any.
        seed: of the first video's noise.
        in_batches: several videos are made in one pipeline call where the pair's prompts allow for it.
    """
    if "OMP_NUM_THREADS" not in os.environ and chosen.large is None and not torch.cuda.is_available():
        torch.set_num_threads(1)  # the embedded pairs' products are tiny: a second thread waits more than it gains
    preset = find_preset(manager, chosen.pair, chosen.large)
    prompts = PromptSet(texts) if texts else own_prompts(preset, num_prompts, first=first_prompt)
    prompts = prompts if in_batches else replace(prompts, batch_size=1)
    call = dict(preset.call_defaults) if preset is not None else {"num_inference_steps": 50}
    return Bench(load=pair_loader(manager, chosen), prompts=prompts, call=call, seed=seed)
