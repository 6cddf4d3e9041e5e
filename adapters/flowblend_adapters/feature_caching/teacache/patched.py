"""The state of a patched TeaCache: taken off the class, kept by denoiser and branch, set before every call."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from flowblend_plugins import StackError, StepContext, hookimpl
from flowblend_plugins.trace.reporter import CallReporter
from flowblend_plugins.types import Denoiser, Keywords, Output

from ..observed_calls import CallPlace, CallPlaces
from ..uncompiled import uncompiled
from .entries import Entries

_SETTINGS = {
    "enable_teacache", "cnt", "num_steps", "rel_l1_thresh", "coefficients", "ret_steps", "cutoff_steps",
    "use_ref_steps", "use_ret_steps", "is_even",
}  # fmt: skip
_STATE_PREFIXES = ("accumulated_", "previous_", "should_calc")
_PREFIXES = (*_STATE_PREFIXES, "teacache_")


class PatchedDenoiser:
    """One denoiser on which the user's patch runs in a blend."""

    def __init__(self, denoiser: Denoiser, settings: Keywords, trace: CallReporter) -> None:
        self._denoiser, self._trace = denoiser, trace
        self._settings = settings
        self._fresh = {name: _fresh(name) for name in settings if name.startswith(_STATE_PREFIXES)}
        self._is_by_parity = any(name.endswith("_even") for name in settings)
        self._block_lists = [m for m in denoiser.children() if isinstance(m, nn.ModuleList) and len(m)]
        self._states: dict[CallPlace, Keywords] = {}
        self.forget()

    def forget(self) -> None:
        self._states.clear()
        self._places = CallPlaces()
        self.first_index = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        with ExitStack() as undo:
            for blocks in self._block_lists:
                undo.callback(blocks[0].register_forward_pre_hook(self._block_runs).remove)
            undo.callback(self._denoiser.register_forward_pre_hook(self._before).remove)
            undo.callback(self._denoiser.register_forward_hook(self._after).remove)
            yield

    @uncompiled
    def _before(self, denoiser: Denoiser, args: object) -> None:
        step = self._trace.step
        self._has_computed = False
        if step is None:  # no call of the pipeline: computed, and counted by nobody
            denoiser.enable_teacache = False
            return
        self._key = self._places.of(step)
        state = self._states.get(self._key)
        for name, value in (self._settings | (state or self._fresh)).items():
            setattr(denoiser, name, value)
        calls_per_step = 2 if self._is_by_parity else 1
        side = list(self._states).index(self._key) % calls_per_step if state else len(self._states) % calls_per_step
        # At the first count a patch computes, having nothing to compare with; so it is the count while it has nothing.
        steps = step.step_index - self.first_index if state else 0
        denoiser.cnt = steps * calls_per_step + side
        denoiser.num_steps = (step.num_inference_steps - self.first_index) * calls_per_step
        if "cutoff_steps" in self._settings:
            before_end = self._settings["num_steps"] - self._settings["cutoff_steps"]
            denoiser.cutoff_steps = denoiser.num_steps - before_end

    @uncompiled
    def _after(self, denoiser: Denoiser, args: object, output: Output) -> None:
        if self._trace.step is None:
            return
        self._states[self._key] = {name: getattr(denoiser, name) for name in self._fresh}
        if not self._has_computed:
            self._trace.report_outcome("reuse")

    def _block_runs(self, *_: object) -> None:
        self._has_computed = True


class PatchedState:
    """All denoisers of one blend; hears when they enter and when a generation is over."""

    def __init__(self, trace: CallReporter) -> None:
        self._trace = trace
        self._entries = Entries()
        self._denoisers: dict[int, PatchedDenoiser] = {}

    @contextmanager
    def serving(self, letter: str, denoiser: Denoiser, source: Denoiser | None) -> Iterator[None]:
        """The patch of ``source`` on this denoiser; without a source it computes, even if its class is patched."""
        with ExitStack() as undo:
            undo.callback(_put_back, denoiser, {n: v for n, v in vars(denoiser).items() if _belongs(n)})
            if source is None:
                if getattr(denoiser, "enable_teacache", False):
                    denoiser.enable_teacache = False
            elif id(denoiser) not in self._denoisers:
                if source is not denoiser:
                    undo.enter_context(_lent_forward(letter, denoiser, source))
                patched = PatchedDenoiser(denoiser, _settings_of(source), self._trace)
                self._denoisers[id(denoiser)] = patched
                undo.enter_context(patched.watched())
            yield

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext, denoiser: Denoiser, reentry: str) -> None:
        must_forget = self._entries.note(step, denoiser, reentry)
        patched = self._denoisers.get(id(denoiser))
        if patched is not None and must_forget:
            patched.forget()
            patched.first_index = self._entries.first_index

    @hookimpl
    def flowblend_generation_finished(self) -> None:
        self._entries.clear()
        for patched in self._denoisers.values():
            patched.forget()


def _belongs(name: str) -> bool:
    return name in _SETTINGS or name.startswith(_PREFIXES)


def _fresh(name: str) -> bool | int | None:
    return 0 if name.startswith("accumulated_") else None if name.startswith("previous_") else True


def _settings_of(denoiser: Denoiser) -> Keywords:
    """Everything of the patch, what is on the class and what has come onto the instance."""
    names = {name for owner in (*type(denoiser).__mro__, denoiser) for name in vars(owner) if _belongs(name)}
    return {name: getattr(denoiser, name) for name in names}


def _put_back(denoiser: Denoiser, found: Keywords) -> None:
    for name in [name for name in vars(denoiser) if _belongs(name)]:
        del denoiser.__dict__[name]
    denoiser.__dict__.update(found)


@contextmanager
def _lent_forward(letter: str, denoiser: Denoiser, source: Denoiser) -> Iterator[None]:
    """The replaced ``forward`` of another denoiser of the same class, where that was replaced on the instance."""
    plain: Any = type(denoiser)
    if (plain.__module__, plain.__qualname__) != (type(source).__module__, type(source).__qualname__):
        raise StackError(
            f"'adopted_teacache': mirror=True, but the patch is for {type(source).__name__} and denoiser {letter} is a "
            f"{plain.__name__}. Leave mirror out."
        )
    function = _own_forward(source)
    if function is None:  # replaced on the class, which both have
        yield
        return
    # As a class, since offloading takes instance attributes off and puts them on again.
    denoiser.__class__ = type(plain.__name__, (plain,), {"__module__": plain.__module__, "forward": function})
    if "_old_forward" in vars(denoiser):
        denoiser._old_forward = types.MethodType(function, denoiser)
    try:
        yield
    finally:
        denoiser.__class__ = plain
        if "_old_forward" in vars(denoiser):
            denoiser._old_forward = types.MethodType(plain.forward, denoiser)
        elif getattr(vars(denoiser).get("forward"), "__func__", None) is function:
            del denoiser.__dict__["forward"]


def _own_forward(source: Denoiser) -> Callable[..., Output] | None:
    """Set the function that stands in for ``forward`` on the instance, below offloading's wrapper."""
    forward = vars(source).get("_old_forward", vars(source).get("forward"))
    if forward is None:
        return None
    if inspect.ismethod(forward) and forward.__self__ is source:
        return None if forward.__func__ is getattr(type(source), "forward", None) else forward.__func__
    raise StackError(
        "'adopted_teacache': mirror=True, but the forward that was set on the patched denoiser is no method of it, so "
        "it cannot be put on another. Set it with forward.__get__(denoiser), or leave mirror out."
    )
