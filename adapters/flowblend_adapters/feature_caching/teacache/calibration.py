"""Fitting TeaCache's polynomials to a pair: what the signals changed by, and what the output did.

Every denoiser generates alone, so that its steps are uninterrupted, and computes every step. Its polynomial is the
least-squares fit of the output's relative change on the signal's, over all steps, prompts and guidance branches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from flowblend_plugins import FlowBlendError
from flowblend_plugins.api import DenoiserSource, enable
from flowblend_plugins.trace.trace import Trace
from flowblend_plugins.types import Denoiser, KeywordsView, Output, Pipeline

from ..observed_calls import CallPlace, CallPlaces
from .adapter import FORCED_STEPS
from .block_stack import BlockStack
from .fits import Fit, describe_denoiser
from .published import Estimate
from .rule import Accumulator, Polynomial, SkipRule
from .signals import layout_of, relative_change

DEGREE = 4
MIN_R_SQUARED = 0.4
"""Below this the output changes mostly for reasons that the signal does not show, and skipping by it is guessing."""

_REUSED = {"slow": 1 / 3, "fast": 1 / 2}
_THRESHOLDS = np.geomspace(1e-4, 1e2, 601)


class PoorFitError(FlowBlendError):
    """The signal does not say enough about the output to skip by it."""


@dataclass
class Trajectory:
    """The relative changes along the steps of one guidance branch of one generation.

    Attributes:
        steps: step indices, from the second step on.
        signals: by name, the signal's change at each of these steps.
        outputs: the output's.
    """

    num_inference_steps: int
    steps: list[int] = field(default_factory=list)
    signals: dict[str, list[float]] = field(default_factory=dict)
    outputs: list[float] = field(default_factory=list)


class ChangeRecorder:
    """Watches one denoiser compute every step. Filled while the pipeline runs: ``trajectories``."""

    def __init__(self, denoiser: Denoiser, trace: Trace) -> None:
        self.trajectories: list[Trajectory] = []
        self._denoiser, self._trace = denoiser, trace
        self._signals = layout_of(denoiser).signals
        self._before: dict[CallPlace, tuple[dict[str, torch.Tensor], torch.Tensor, Trajectory]] = {}
        self._places, self._generation = CallPlaces(), -1
        self._seen: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        stack = BlockStack(self._denoiser, self, tuple(self._signals))
        handle = self._denoiser.register_forward_hook(self._answered)
        try:
            with stack.attached():
                yield
        finally:
            handle.remove()

    def entering(self, block: nn.Module, arguments: KeywordsView, time: torch.Tensor | None) -> bool:
        self._seen = {name: read(block, arguments, time).clone() for name, read in self._signals.items()}
        return False

    def computed(self, residual: torch.Tensor) -> None:
        raise AssertionError("nothing is cached while changes are recorded")

    def _answered(self, module: nn.Module, args: object, output: Output) -> None:
        step = self._trace.step
        if step is None:
            return
        if step.generation != self._generation:
            self._generation = step.generation
            self._before.clear()
        key, new = self._places.of(step), output[0].detach().clone()
        before = self._before.get(key)
        if before is None:
            trajectory = Trajectory(step.num_inference_steps)
            self.trajectories.append(trajectory)
        else:
            signals, old, trajectory = before
            trajectory.steps.append(step.step_index)
            trajectory.outputs.append(relative_change(new, old))
            for name, signal in self._seen.items():
                trajectory.signals.setdefault(name, []).append(relative_change(signal, signals[name]))
        self._before[key] = self._seen, new, trajectory


def record_changes(
    pipe: Pipeline,
    small: DenoiserSource | None,
    letter: str,
    generations: Sequence[Callable[[Pipeline], None]],
    denoisers: Mapping[str, Denoiser] | None = None,
) -> tuple[nn.Module, list[Trajectory]]:
    """A denoiser, and its changes while it alone generates.

    Args:
        pipe, small: the pair, as ``enable()`` takes it.
        letter: ``"L"``, ``"S"`` or that of a further denoiser.
        generations: functions that call the pipeline they are given once.
        denoisers: further denoisers by letter, as ``enable()`` takes them.
    """
    with enable(pipe, small, 3 * letter, denoisers=denoisers) as blend:
        recorder = ChangeRecorder(blend.denoisers[letter], blend.trace)
        with recorder.watching():
            for generate in generations:
                generate(pipe)
        return blend.denoisers[letter], recorder.trajectories


def fit_denoiser(denoiser: Denoiser, trajectories: Sequence[Trajectory]) -> list[Fit]:
    """One fit for every signal of the denoiser, good or poor; thresholds are for the first number of steps there is."""
    outputs = np.concatenate([trajectory.outputs for trajectory in trajectories])
    fits = []
    for signal in layout_of(denoiser).signals:
        changes = np.concatenate([trajectory.signals[signal] for trajectory in trajectories])
        kept = np.isfinite(changes) & np.isfinite(outputs)
        x, y = changes[kept], outputs[kept]
        if len(np.unique(x)) <= 2 * DEGREE:
            raise FlowBlendError(
                f"{len(np.unique(x))} different changes of the signal are too few for a polynomial of degree {DEGREE}. "
                f"Calibrate with --steps {2 * DEGREE + 2} or more, best as many as you generate with."
            )
        coefficients = np.polyfit(x, y, DEGREE)
        r_squared = 1 - float(((y - np.polyval(coefficients, x)) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        polynomial = Polynomial(tuple(map(float, coefficients)), (float(x.min()), float(x.max())))
        counts = [trajectory.num_inference_steps for trajectory in trajectories]
        main = [trajectory for trajectory in trajectories if trajectory.num_inference_steps == counts[0]]
        slow, fast = (_threshold(signal, polynomial, main, share) for share in _REUSED.values())
        steps = tuple(dict.fromkeys(counts))
        estimate = Estimate(polynomial, slow, fast)
        fits.append(Fit(describe_denoiser(denoiser), signal, estimate, r_squared, len(x), steps))
    return fits


def refuse_poor(letter: str, fit: Fit) -> None:
    """Raises ``PoorFitError`` naming the figure and the limit."""
    if not fit.r_squared >= MIN_R_SQUARED:
        raise PoorFitError(
            f"denoiser {letter}, signal {fit.signal!r}: the fit of degree {fit.degree} explains R^2 = "
            f"{fit.r_squared:.3f} of the output's change over {fit.num_points} points, and at least {MIN_R_SQUARED:g} "
            "is needed to skip by it. Give more prompts or steps, or use a cache that watches the content, such as "
            "first_block_cache."
        )


def _threshold(signal: str, polynomial: Polynomial, trajectories: Sequence[Trajectory], share: float) -> float:
    """The smallest threshold that would have reused this share of all calls, or as many as can be."""
    best, best_share = float(_THRESHOLDS[0]), -1.0
    for threshold in _THRESHOLDS:
        reused = _reused_share(SkipRule(polynomial, float(threshold), *FORCED_STEPS[signal]), signal, trajectories)
        if reused > best_share:
            best, best_share = float(threshold), reused
        if reused >= share:
            break
    return float(f"{best:.3g}")


def _reused_share(rule: SkipRule, signal: str, trajectories: Sequence[Trajectory]) -> float:
    reused = calls = 0
    for trajectory in trajectories:
        accumulator, first = Accumulator(), trajectory.steps[0] - 1
        calls += len(trajectory.steps) + 1
        for step, change in zip(trajectory.steps, trajectory.signals[signal], strict=True):
            forced = rule.is_forced(step, trajectory.num_inference_steps, first, first)
            if not forced and rule.reuses(accumulator, change):
                reused += 1
            else:
                accumulator.distance = 0.0
    return reused / calls
