"""cache-dit's contexts of one denoiser, one set for each guidance branch, told the step by the router.

A context is where cache-dit keeps what it reuses and counts its steps. Left to itself it counts calls and takes every
second one for the other guidance branch, which goes wrong as soon as a branch is missing at a step.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from flowblend_plugins import AttachTarget, hookimpl
from flowblend_plugins.types import Denoiser, Foreign, Keywords, Output

from ..observed_calls import CallPlace, CallPlaces, Probe, observed_calls

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins import StepContext
    from flowblend_plugins.trace.reporter import CallReporter


class BranchContexts:
    """Puts the context of the branch that is called where cache-dit looks for one.

    Args:
        manager: cache-dit's ``CachedContextManager``; the contexts found in it are the pattern for those made here.
        names: what the contexts of the denoiser are called, one for each list of blocks.
        warmup_steps: steps that are always computed after the denoiser enters; ``None`` leaves it to the contexts.
    """

    def __init__(self, manager: Foreign, names: Sequence[str], warmup_steps: int | None) -> None:
        self._manager = manager
        self._names = tuple(names)
        self._warmup_steps = warmup_steps
        self._found: Keywords = {}
        self._current: Foreign | None = None
        self._contexts: dict[tuple[str, CallPlace], Foreign] = {}
        self._entered: StepContext | None = None
        self._places = CallPlaces()
        self.reused_diffs: list[float] = []
        self.settings = ""

    def enter(self, step: StepContext, reentry: str) -> None:
        """The denoiser enters: what is kept is stale, unless it was asked to be used all the same."""
        entered = self._entered
        if entered is None or step.step_index <= entered.step_index or reentry == "recompute":
            self._forget()
        self._entered = step

    def before_call(self, step: StepContext) -> None:
        if not self._found:
            self._found = {name: self._manager.get_context(name) for name in self._names}
            self._current = self._manager.get_context()
        branch = self._places.of(step)
        for name in self._names:
            context = self._contexts.get((name, branch))
            if context is None:
                context = self._contexts[name, branch] = self._new_context(name)
            self._put(name, context)
            if self._warmup_steps is not None and self._entered is not None:
                is_warming_up = step.step_index - self._entered.step_index < self._warmup_steps
                context.cache_config.max_warmup_steps = context.get_current_step() + 2 if is_warming_up else 0

    def after_call(self) -> None:
        """Leave those of the first branch in place, which is whose figures ``cache_dit.summary`` shows."""
        for name in self._names:
            first = next((context for (of, _), context in self._contexts.items() if of == name), None)
            if first is not None:
                self._put(name, first)

    def put_found_back(self) -> None:
        """Restore cache-dit's own context for calls outside the blend, and at the end of a generation."""
        for name, context in self._found.items():
            self._put(name, context)

    def finish(self) -> None:
        self._forget()
        if self._found:
            self.put_found_back()
            self._manager._current_context = self._current
        self._found, self._current = {}, None
        self._entered, self._places = None, CallPlaces()

    def _new_context(self, name: str) -> Foreign:
        settings = copy.deepcopy(self._found[name]._init_kwargs)
        settings["cache_config"].enable_separate_cfg = False
        if self._warmup_steps is not None:
            settings["cache_config"].max_warmup_steps = self._warmup_steps
        self._manager._cached_context_manager.pop(name, None)  # else reset_context would empty what it replaces
        self.settings = settings["cache_config"].strify()
        return self._manager.reset_context(name, **settings)

    def _put(self, name: str, context: Foreign) -> None:
        self._manager._cached_context_manager[name] = context

    def _forget(self) -> None:
        for context in self._contexts.values():
            diffs = context.get_residual_diffs()
            self.reused_diffs += [diffs[str(s)] for s in context.get_cached_steps() if str(s) in diffs]
            context.clear_buffers()
        self._contexts = {}


@contextlib.contextmanager
def probes_in_the_middle(
    name: str, blocks: nn.ModuleList, config: Foreign, trace: CallReporter
) -> Iterator[dict[str, Probe]]:
    """Probes on the blocks of a list that cache-dit's config lets it reuse, by their names in the denoiser."""
    middle = range(config.Fn_compute_blocks, len(blocks) - config.Bn_compute_blocks)
    probes = {index: Probe(trace) for index in middle}
    with contextlib.ExitStack() as undo:
        for index, probe in probes.items():
            undo.callback(blocks[index].register_forward_pre_hook(probe.note).remove)
        yield {f"{name}.{index}": probe for index, probe in probes.items()}


class CacheDitSteering:
    """Takes part in the blend to let every steered denoiser forget in time, and to sum its generation up.

    Attributes:
        trace: of the blend.
        at_end: what to do besides when a generation is over, also one that was interrupted.
    """

    def __init__(self, name: str, target: AttachTarget) -> None:
        self._name = name
        self.trace = target.trace
        self.at_end: list[Callable[[], None]] = []
        self._steered: dict[str, BranchContexts] = {}

    @contextlib.contextmanager
    def over(
        self,
        denoiser: Denoiser,
        letter: str,
        contexts: BranchContexts,
        probes: Mapping[str, Probe],
        is_predicting: bool,
    ) -> Iterator[None]:
        """Steer one denoiser that runs its blocks through cache-dit.

        Args:
            denoiser: the cached denoiser.
            letter: its letter.
            contexts: its contexts.
            probes: on the blocks in the middle, by their names: those that do not run where their list is reused.
            is_predicting: a calibrator continues what was computed, so that a skipped call is a prediction.
        """
        trace = self.trace
        self._steered[letter] = contexts

        def before_any_call(module: nn.Module, args: object) -> None:
            if trace.step is None:
                contexts.put_found_back()

        def after_any_call(module: nn.Module, args: object, output: Output) -> None:
            if trace.step is not None:
                contexts.after_call()

        def skipped_names() -> frozenset[str]:
            return frozenset(name for name, probe in probes.items() if not probe.has_run)

        outcome = "predict" if is_predicting else "reuse"
        observed = observed_calls(denoiser, list(probes.values()), trace, outcome, contexts.before_call, skipped_names)
        with contextlib.ExitStack() as undo:
            undo.callback(denoiser.register_forward_pre_hook(before_any_call).remove)
            undo.callback(denoiser.register_forward_hook(after_any_call, always_call=True).remove)
            undo.enter_context(observed)
            yield

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext, reentry: str) -> None:
        if step.denoiser in self._steered:
            self._steered[step.denoiser].enter(step, reentry)

    @hookimpl
    def flowblend_generation_finished(self) -> None:
        for finish in self.at_end:
            finish()
        for letter, contexts in self._steered.items():
            contexts.finish()
            self._note(letter, contexts)
            contexts.reused_diffs = []

    def _note(self, letter: str, contexts: BranchContexts) -> None:
        generation = self.trace.last
        num_calls = sum(call.step.denoiser == letter for call in generation.calls) if generation else 0
        if generation is None or num_calls == 0:
            return
        num_skipped = num_calls - generation.num_forwards(letter, "compute")
        line = f"{self._name} on {letter}: {contexts.settings}, {num_skipped} of {num_calls} calls not computed"
        diffs = contexts.reused_diffs
        if diffs:
            line += f", at residual differences {min(diffs):.3g} to {max(diffs):.3g} (median "
            line += f"{statistics.median(diffs):.3g})"
        self.trace.note(line)
