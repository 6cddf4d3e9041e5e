"""Load a pair for a bench, as often as it asks for one that nothing has touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from flowblend_plugins.cli.options import find_preset
from flowblend_plugins.manager import FlowblendPluginManager
from flowblend_plugins.pairs.loading import load_denoiser
from flowblend_plugins.pairs.open import open_pair
from flowblend_plugins.pairs.placement import Placement
from flowblend_plugins.pipelines.components import denoiser_slot
from flowblend_plugins.types import Pipeline


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
