"""Measuring MagCache's magnitude ratios with diffusers' own calibration mode, on each denoiser of a pair by itself."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from diffusers import MagCacheConfig
from torch import nn

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family, StackError
from flowblend_plugins.api import DenoiserSource, enable
from flowblend_plugins.files.measurement import config_facts
from flowblend_plugins.pipelines.source import opens_cache_contexts
from flowblend_plugins.types import Denoiser, KeywordsView, Output, Pipeline

from .mag_cache import MagCache, mag_states
from .mag_ratios import DenoiserRatios, MagRatios
from .native_cache import denoiser_obstacles
from .own_hooks import enabled_cache, restored_hooks


def calibrate_mag_ratios(
    pipe: Pipeline,
    small: DenoiserSource | None = None,
    *,
    calls: Sequence[KeywordsView],
    denoisers: Mapping[str, Denoiser] | None = None,
) -> MagRatios:
    """Measure the ratios of every denoiser of a pair, each on generations of its own.

    diffusers' MagCache runs in its calibration mode, in which nothing is skipped, on one denoiser at a time under a
    schedule that calls that one alone. ``pipe`` is afterwards what it was.

    Args:
        pipe: a diffusers pipeline; its denoiser is ``L``.
        small: the small denoiser ``S``, as ``enable()`` takes it.
        calls: keyword arguments of each generation: prompts, ``num_inference_steps``, guidance. A ``generator`` gives
            every denoiser the same noise.
        denoisers: further denoisers by letter.

    Raises:
        StackError: the generations differ in their number of steps, or a ratio is no number.
        FlowBlendError: as ``enable()``.
    """
    if not calls:
        raise StackError("calibrating MagCache takes at least one generation; calls is empty.")
    letters = ["L", *(["S"] if small is not None else []), *(denoisers or {})]
    measured: dict[str, DenoiserRatios] = {}
    num_steps: set[int] = set()
    for letter in letters:
        calibrating = _Calibrating(letter=letter)
        chosen = small if letter == "S" else None
        with enable(pipe, chosen, letter * 3, denoisers=denoisers, adapters=[calibrating]) as blend:
            denoiser: Denoiser = blend.denoisers[letter]
            for call in calls:
                with _rewound(call.get("generator")):
                    pipe(**call)
        generations = [*calibrating.seen.values()]
        num_steps |= {len(seen) for seen in generations}
        if len(num_steps) != 1:
            raise StackError(
                f"the generations to calibrate MagCache on have {' and '.join(map(str, sorted(num_steps)))} steps. "
                "Give all of them the same num_inference_steps."
            )
        measured[letter] = DenoiserRatios(
            class_name=type(denoiser).__name__, config=config_facts(denoiser), ratios=_mean(letter, generations)
        )
    return MagRatios(num_inference_steps=num_steps.pop(), num_generations=len(calls), denoisers=measured)


def _refuse(pipe: Pipeline, letter: str, denoiser: Denoiser) -> None:
    for found, remedy in denoiser_obstacles(denoiser, MagCache.min_blocks, MagCache.needs_registered_blocks):
        raise StackError(f"MagCache cannot be calibrated on denoiser {letter}: {found}. {remedy}")
    if denoiser.is_cache_enabled:
        raise StackError(
            f"MagCache cannot be calibrated on denoiser {letter}: it has a cache enabled "
            f"({type(denoiser._cache_config).__name__}), so not every step would be computed. Call disable_cache() on "
            "it first."
        )
    if opens_cache_contexts(type(pipe)) is False:
        raise StackError(
            f"MagCache cannot be calibrated on {type(pipe).__name__}: it opens no cache context, so the guidance "
            "branches could not be told apart. Use 'teacache' instead."
        )


@dataclass(frozen=True, kw_only=True)
class _Calibrating(Adapter):
    """MagCache in its calibration mode on one denoiser.

    Args:
        letter: the denoiser.
        seen: by generation and step, the ratios of the guidance branches; filled while the pipeline runs.
    """

    letter: str
    seen: dict[int, dict[int, list[float]]] = field(default_factory=dict)

    name: ClassVar[str] = "mag_cache_calibration"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.BLENDING)  # it skips nothing

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[None]:
        denoiser: Denoiser = target.denoisers[self.letter]
        _refuse(target.pipeline, self.letter, denoiser)
        # At the last of its steps diffusers prints the ratios and forgets them, so it is told of more than there are.
        config = MagCacheConfig(calibrate=True, num_inference_steps=10**9)
        with restored_hooks(denoiser), enabled_cache(denoiser, config, target.trace):
            states = mag_states(denoiser)

            def note(module: nn.Module, args: object, output: Output) -> None:
                step = target.trace.step
                if step is not None:
                    steps = self.seen.setdefault(step.generation, {})
                    steps.setdefault(step.step_index, []).append(states.get_state().calibration_ratios[-1])

            handle = denoiser.register_forward_hook(note)
            try:
                yield
            finally:
                handle.remove()


@contextlib.contextmanager
def _rewound(generator: torch.Generator | list[torch.Generator] | None) -> Iterator[None]:
    """Rewind a random generator, or a list of them, for the next generation."""
    generators = [] if generator is None else generator if isinstance(generator, list) else [generator]
    states = [one.get_state() for one in generators]
    try:
        yield
    finally:
        for one, state in zip(generators, states, strict=True):
            one.set_state(state)


def _mean(letter: str, generations: Sequence[Mapping[int, Sequence[float]]]) -> tuple[float, ...]:
    values = []
    for step in sorted(generations[0]):
        ratios = [ratio for seen in generations for ratio in seen[step]]
        values.append(math.fsum(ratios) / len(ratios))
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise StackError(
            f"denoiser {letter}: a magnitude ratio came out as no number above 0, so its outputs are broken. Check its "
            "weights and its number format with a plain generation."
        )
    return tuple(values)
