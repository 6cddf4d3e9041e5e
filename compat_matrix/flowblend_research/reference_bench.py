"""Bench of the embedded reference pair, for studies that measure stacks outside a matrix run."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from flowblend_compat_matrix.measuring.bench import Bench
from flowblend_compat_matrix.measuring.loading import PairChoice, pair_loader
from flowblend_compat_matrix.measuring.prompts import own_prompts
from flowblend_compat_matrix.plugin import REFERENCE
from flowblend_plugins.manager import FlowblendPluginManager


def reference_bench(
    manager: FlowblendPluginManager, num_prompts: int, first_prompt: int, seed: int, *, in_batches: bool = False
) -> Bench:
    """The reference pair on prompts of its own.

    Args:
        manager: knows the registered pairs.
        num_prompts: of the pair's own, from ``first_prompt`` on.
        seed: of the first video's noise.
        in_batches: several videos are made in one pipeline call.
    """
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(1)  # the embedded pair's products are tiny: a second thread waits more than it gains
    prompts = own_prompts(REFERENCE, num_prompts, first=first_prompt)
    prompts = prompts if in_batches else replace(prompts, batch_size=1)
    load = pair_loader(manager, PairChoice(REFERENCE.name))
    return Bench(load=load, prompts=prompts, call=dict(REFERENCE.call_defaults), seed=seed)
