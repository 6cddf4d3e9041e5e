"""Measuring a pair on its own pipeline: velocity divergence, and the stage boundaries that it suggests.

The searched boundaries are in :mod:`flowblend_plugins.calibration.boundaries`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ..blend import Blend, DenoiserSource
from ..contract.adapter import Adapter, arguments_set_by
from ..contract.spec import write_spec
from ..contract.traits import Family
from ..errors import AdapterError
from ..schedule import StageSchedule
from ..trace.flops import CallInputs, FlopCounter
from ..types import KeywordsView, Output, Pipeline
from .calibration import Calibration, SearchCost
from .curve import DivergenceCurve, boundaries_of_divergence
from .divergence import shadowed
from .setting import CalibrationSetting, DenoiserIdentity, SamplerIdentity, installed_versions


@dataclass(frozen=True, kw_only=True)
class Order:
    """Generations that a calibration measures: a pair, prompts and the call.

    Attributes:
        pipe, small: as :func:`flowblend_plugins.enable` takes them.
        prompts: what to generate.
        call: the other keyword arguments of the pipeline call.
        pair: what to call the pair in the result.
        seed: of the first prompt's noise; each further prompt has the next one.
        adapters: solvers to sample with, instead of the pipeline's own.
    """

    pipe: Pipeline
    small: DenoiserSource | None
    prompts: Sequence[str]
    call: KeywordsView
    pair: str
    seed: int = 0
    adapters: Iterable[str | Adapter] = ()

    def generate(self, number: int, output_type: str) -> Output:
        """Generate one prompt, with noise that is the same every time."""
        noise = torch.Generator("cpu").manual_seed(self.seed + number)
        call = {**self.call, "prompt": self.prompts[number], "generator": noise, "output_type": output_type}
        return self.pipe(**call)

    def guidance_scale(self, blend: Blend) -> float | None:
        """Guidance scale of the call, or else the pipeline's own; ``None`` if it has none."""
        given = {**self.call, **arguments_set_by(blend.adapters)}
        if "guidance_scale" in given:
            return given["guidance_scale"]
        parameter = inspect.signature(type(self.pipe).__call__).parameters.get("guidance_scale")
        return None if parameter is None else parameter.default

    def setting(self, blend: Blend) -> CalibrationSetting:
        """Conditions of the generations of a blend, which has made at least one."""
        return CalibrationSetting(
            pair=self.pair,
            denoisers={letter: DenoiserIdentity.of(blend.denoisers[letter]) for letter in ("L", "S")},
            sampler=SamplerIdentity.of(blend.pipeline.scheduler),
            num_timesteps=blend.trace.generations[0].calls[0].step.num_inference_steps,
            guidance_scale=self.guidance_scale(blend),
            adapters=tuple(write_spec(adapter) for adapter in blend.adapters),
            prompts=tuple(self.prompts),
            seed=self.seed,
            versions=installed_versions(),
        )


def measure_divergence(order: Order) -> DivergenceCurve:
    """Measure how far apart the two velocities are at every step of one large-only generation of each prompt.

    The small denoiser runs in the large one's shadow, so the generations are the large denoiser's own, bit for bit.

    Raises:
        AdapterError: an adapter is no solver.
        FlowBlendError: as :func:`flowblend_plugins.enable` raises.
    """
    return _watch(order)[0]


def boundaries_by_divergence(order: Order) -> Calibration:
    """Boundaries from the divergence alone: :func:`boundaries_of_divergence` of its mean over the prompts.

    It costs one large-only and one small-only generation of each prompt, and nothing is decoded. How far it lands from
    the searched boundaries depends on the pair.
    """
    curve, cost = _watch(order)
    early, late = boundaries_of_divergence([one.mean for one in curve.branches[curve.deciding_branch].relative_l2])
    return Calibration(
        setting=curve.setting,
        early_steps=early,
        late_steps=late,
        method="divergence",
        threshold=None,
        judged_by=None,
        artefact=None,
        late_is_limited=False,
        cost=cost,
    )


def _watch(order: Order) -> tuple[DivergenceCurve, SearchCost]:
    runs = []
    with Blend(order.pipe, order.small, StageSchedule.named("LLL"), order.adapters) as blend:
        refuse_all_but_solvers(blend)
        for number in range(len(order.prompts)):
            with shadowed(blend.trace, order.guidance_scale(blend)) as shadow:
                order.generate(number, "latent")
            runs.append(shadow.divergences)
        setting = order.setting(blend)
        calls = blend.trace.generations[0].calls
        large, small = (sum(count_flops(blend, letter, call.inputs) for call in calls) for letter in ("L", "S"))
    cost = SearchCost(
        num_large_forwards=len(calls), num_small_forwards=len(calls), large_generations=1.0 + small / large
    )
    return DivergenceCurve.of(runs, setting), cost


def count_flops(blend: Blend, letter: str, inputs: CallInputs) -> int:
    """FLOPs of one forward of a denoiser on such inputs, attention included."""
    return FlopCounter.of(blend.denoisers[letter]).count(inputs).total


def refuse_all_but_solvers(blend: Blend) -> None:
    """A boundary is of two plain denoisers: what caches add to it would be measured as theirs."""
    others = [adapter.name for adapter in blend.adapters if adapter.traits.family is not Family.STEP_REDUCTION]
    if others:
        raise AdapterError(
            f"a calibration is of the two denoisers alone, but {', '.join(others)} would change what they answer. "
            "Calibrate with solvers only, and stack the rest when you run."
        )
