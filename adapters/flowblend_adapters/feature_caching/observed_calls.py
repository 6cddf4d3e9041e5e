"""Outcome of a cached call, observed beneath the cache rather than derived again from its rule."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from flowblend_plugins.types import Denoiser, Foreign, Output

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins import Outcome, StepContext
    from flowblend_plugins.trace.reporter import CallReporter


CallPlace = tuple["str | None", int]


class CallPlaces:
    """Tells the calls of one step apart: by guidance branch, and where a pipeline names none, by their order."""

    def __init__(self) -> None:
        self._at: tuple[int, int] | None = None
        self._calls: Counter[str | None] = Counter()

    def of(self, step: StepContext) -> CallPlace:
        """Branch of the call that is made now, and how many calls of that branch its step had before."""
        at = step.generation, step.step_index
        if at != self._at:
            self._at = at
            self._calls.clear()
        self._calls[step.branch] += 1
        return step.branch, self._calls[step.branch] - 1


class Probe:
    """Whether something beneath a cache has run in a call of the blend since :attr:`has_run` was set to ``False``."""

    __slots__ = ("_trace", "has_run")

    def __init__(self, trace: CallReporter) -> None:
        self.has_run = False
        self._trace = trace

    def note(self, *_: object) -> None:
        """Note that what is observed runs."""
        if self._trace.step is not None:
            self.has_run = True

    def on(self, function: Callable[..., Output]) -> Callable[..., Output]:
        """``function``, noted when it runs; its signature stays readable."""

        @functools.wraps(function)
        def noted(*args: object, **kwargs: object) -> Output:
            self.note()
            return function(*args, **kwargs)

        return noted


@contextlib.contextmanager
def probe_beneath(module: nn.Module, trace: CallReporter) -> Iterator[Probe]:
    """A probe on the forward of a module that is to be cached; enter it before the cache is put on."""
    probe = Probe(trace)
    is_own = "forward" in module.__dict__
    forward = module.forward
    noted = probe.on(forward)
    module.forward = noted
    try:
        yield probe
    finally:
        if module.__dict__.get("forward") is noted:
            if is_own:
                module.forward = forward
            else:
                del module.__dict__["forward"]
        registry: Foreign | None = module.__dict__.get("_diffusers_hook")
        for reference in () if registry is None else registry._fn_refs:  # hooks that came since, and call it
            for name in ("forward", "original_forward"):
                if getattr(reference, name) is noted:
                    setattr(reference, name, forward)


@contextlib.contextmanager
def observed_calls(
    denoiser: Denoiser,
    probes: Sequence[Probe],
    trace: CallReporter,
    skipped_outcome: Outcome | Callable[[], Outcome],
    before_call: Callable[[StepContext], None],
    skipped_names: Callable[[], frozenset[str]] = frozenset,
) -> Iterator[None]:
    """Report every routed call of a denoiser in which one of the probes did not run.

    Args:
        denoiser: the cached denoiser.
        probes: on what runs in a call that is computed.
        trace: of the blend.
        skipped_outcome: ``"reuse"`` or ``"predict"``: what to report of such a call, or who says so just after it.
        before_call: told where each routed call stands, before the cache decides.
        skipped_names: the modules that did not run in the call just made, where that is known of all of them.
    """

    def start(module: nn.Module, args: object) -> None:
        if trace.step is not None:
            for probe in probes:
                probe.has_run = False
            before_call(trace.step)

    def finish(module: nn.Module, args: object, output: Output) -> None:
        if trace.step is not None and not all(probe.has_run for probe in probes):
            outcome = skipped_outcome() if callable(skipped_outcome) else skipped_outcome
            trace.report_outcome(outcome, skipped_names())

    with contextlib.ExitStack() as undo:
        undo.callback(denoiser.register_forward_pre_hook(start).remove)
        undo.callback(denoiser.register_forward_hook(finish).remove)
        yield
