"""Velocity divergence: how far apart the two denoisers are at every step of one large-only generation.

The small denoiser runs in the large one's shadow: it is called with the same arguments and its answer is compared, then
dropped. So the trajectory is the large denoiser's own, bit for bit, and one generation gives the whole curve, which
FlowBlending (arXiv 2512.24724) uses as the proxy for its stage boundaries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

from ..step import StepContext
from ..trace.trace import Trace
from ..types import Args, Keywords, Output

GUIDED = "guided"
"""Stands for a branch where both branches were seen and combined at the guidance scale."""


class Divergence(NamedTuple):
    """The two denoisers' disagreement at one step, the mean over the batch.

    Attributes:
        step_index: index in the sampler's list of timesteps.
        sigma: noise level of the step, ``None`` where the sampler has none.
        branch: ``"cond"``, ``"uncond"``, ``"guided"`` (after guidance), or what the pipeline says.
        cosine: of the two velocities, 1 where they point the same way.
        relative_l2: norm of their difference over the norm of the large one's.
    """

    step_index: int
    sigma: float | None
    branch: str | None
    cosine: float
    relative_l2: float


class _Velocities(NamedTuple):
    large: torch.Tensor
    small: torch.Tensor


class ShadowRun:
    """Divergences seen in the large denoiser's shadow; filled while the pipeline runs.

    Attributes:
        divergences: one for every step and branch, in the order of the calls.
    """

    def __init__(self, trace: Trace, small: nn.Module, guidance_scale: float | None) -> None:
        self.divergences: list[Divergence] = []
        self._trace = trace
        self._small = small
        self._guidance_scale = guidance_scale if guidance_scale is not None and guidance_scale > 1.0 else None
        self._seen: dict[str | None, _Velocities] = {}
        self._seen_at: int | None = None

    def _compare(self, large: nn.Module, args: Args, kwargs: Keywords, output: Output) -> None:
        """Forward hook of the large denoiser; gives nothing back, so the output stays what it is."""
        step = self._trace.step
        if step is None:  # not a call of the generation that is traced
            return
        with torch.no_grad():
            both = _Velocities(output[0], self._small(*args, **kwargs)[0])
            for branch, velocities in self._branches(step, both).items():
                self._note(step, branch, velocities)

    def _branches(self, step: StepContext, both: _Velocities) -> Mapping[str | None, _Velocities]:
        if step.branch != "cond_uncond":
            return {step.branch: both}
        if self._guidance_scale is None:  # pipelines keep the name where guidance is off
            return {"cond": both}
        (large_uncond, large_cond), (small_uncond, small_cond) = both.large.chunk(2), both.small.chunk(2)
        return {"uncond": _Velocities(large_uncond, small_uncond), "cond": _Velocities(large_cond, small_cond)}

    def _note(self, step: StepContext, branch: str | None, velocities: _Velocities) -> None:
        self._append(step, branch, velocities)
        if self._guidance_scale is None:
            return
        if step.step_index != self._seen_at:
            self._seen, self._seen_at = {}, step.step_index
        # Samplers may work in place on what they are given, so what is kept until the other branch comes is a copy.
        self._seen[branch] = _Velocities(velocities.large.clone(), velocities.small.clone())
        cond, uncond = self._seen.get("cond"), self._seen.get("uncond")
        if cond is not None and uncond is not None:
            guided = [_guide(u, c, self._guidance_scale) for c, u in zip(cond, uncond, strict=True)]
            self._append(step, GUIDED, _Velocities(*guided))
            self._seen = {}

    def _append(self, step: StepContext, branch: str | None, velocities: _Velocities) -> None:
        cosine, relative_l2 = divergence(velocities.large, velocities.small)
        self.divergences.append(Divergence(step.step_index, step.sigma, branch, cosine, relative_l2))


@contextlib.contextmanager
def shadowed(trace: Trace, guidance_scale: float | None = None) -> Iterator[ShadowRun]:
    """Let the small denoiser run in the large one's shadow while a pipeline generates.

    The pipeline must be enabled with schedule ``"LLL"`` and both denoisers, so that the trace knows step and branch:

        with enable(pipe, small, "LLL") as blend, shadowed(blend.trace, guidance_scale=5.0) as run:
            pipe("a cat surfing", guidance_scale=5.0)
        run.divergences

    Args:
        trace: the trace of the blend, whose denoisers ``L`` and ``S`` are compared.
        guidance_scale: of the call, for the divergence after guidance (without rescaling); ``None`` leaves that out.
    """
    run = ShadowRun(trace, trace.denoisers["S"], guidance_scale)
    handle = trace.denoisers["L"].register_forward_hook(run._compare, with_kwargs=True)
    try:
        yield run
    finally:
        handle.remove()


def divergence(large: torch.Tensor, small: torch.Tensor) -> tuple[float, float]:
    """Cosine similarity and relative l2 distance of two velocities ``[B, ...]``, each the mean over the batch."""
    wanted, found = large.flatten(1).double(), small.flatten(1).double()
    cosine = nn.functional.cosine_similarity(wanted, found, dim=1)
    relative_l2 = (found - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-12)
    return float(cosine.mean()), float(relative_l2.mean())


def _guide(uncond: torch.Tensor, cond: torch.Tensor, scale: float) -> torch.Tensor:
    return uncond + scale * (cond - uncond)
