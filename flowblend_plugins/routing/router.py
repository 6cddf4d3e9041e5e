"""Model router, which decides which denoiser answers a call.

The denoiser that the pipeline calls (the *host*) is given a dynamic subclass of its own class that overrides
``__call__``, ``cache_context`` and ``_reset_stateful_cache``. That sits outside every patch of ``forward`` (diffusers
hooks, accelerate, compilation), keeps ``isinstance`` and saving, and adds nothing to the instance: setting the class
back is a complete undo. Outside a generation of its own pipeline a host answers as if nothing had been enabled.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

from torch import nn

from ..contract.call import DenoiserCall
from ..contract.traits import REENTRY_POLICIES
from ..errors import RoutingError
from ..pipelines.idle import IdleDenoisers
from ..schedule import Assignment, StageSchedule
from ..step import StepContext
from ..trace.generation import CallRecord
from ..trace.reporter import CallReporter, Told
from ..trace.trace import Trace
from ..types import Args, Foreign, Keywords, KeywordsView, Output, Pipeline
from .answers import Answers, check_letter
from .clock import Clock
from .host import routed_class
from .replay import RecordedCall, Tape, checksum, copied


class _Decision(NamedTuple):
    step: StepContext
    denoiser: nn.Module
    call: Callable[..., Output]


class ModelRouter:
    """Routes the calls of one pipeline's denoisers by a stage schedule.

    Args:
        pipeline: the diffusers pipeline; read for its scheduler and current timestep.
        denoisers: letter to denoiser.
        hosts: those denoisers that the pipeline itself calls.
        schedule: which letter answers at which step.
        hooks: pluggy's hook relay, already checked against the contract.
        reentry: ``"recompute"`` to let a denoiser forget cached state when it returns, ``"keep"`` to leave it.
        idle: moves denoisers that do not answer; without it they stay where they are.

    Attributes:
        in_use: held while the pipeline generates, and while it is disabled.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        denoisers: Mapping[str, nn.Module],
        hosts: tuple[nn.Module, ...],
        schedule: StageSchedule,
        hooks: Foreign,
        trace: Trace,
        reentry: str = "recompute",
        idle: IdleDenoisers | None = None,
    ) -> None:
        if reentry not in REENTRY_POLICIES:
            raise RoutingError(f"reentry={reentry!r}: expected one of {', '.join(map(repr, REENTRY_POLICIES))}.")
        self.denoisers: dict[str, nn.Module] = dict(denoisers)
        self.schedule = schedule
        self.reentry = reentry
        self._idle = idle or IdleDenoisers(denoisers, "keep")
        self.trace = trace
        self.reporter: CallReporter = trace.reporter
        self.tape: Tape | None = None
        self._pipeline = pipeline
        self._hosts = hosts
        self._hooks = hooks
        self._clock = Clock(pipeline)
        self._base_class: dict[int, Any] = {id(module): type(module) for module in self.denoisers.values()}
        self.in_use = threading.Lock()
        self._turn = threading.RLock()
        self._decision: _Decision | None = None
        self._assignments: tuple[Assignment, ...] = ()
        self._answers = Answers()

    # -- putting on and taking off -------------------------------------------------------------------------------

    def attach(self) -> None:
        for host in self._hosts:
            host.__class__ = routed_class(self._base_class[id(host)], self)

    def detach(self) -> None:
        for host in self._hosts:
            host.__class__ = self._base_class[id(host)]

    # -- a generation --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the pipeline for one call of it, in one thread. Raises ``RoutingError`` where another call holds it."""
        if not self.in_use.acquire(blocking=False):
            raise RoutingError(
                "this pipeline is already generating. A scheduler holds the state of one generation only: wait for "
                "the first call to end, or give each thread a pipeline of its own."
            )
        try:
            yield
        finally:
            self.in_use.release()

    @contextlib.contextmanager
    def generation(self) -> Iterator[None]:
        """Route calls for the length of one pipeline call; state is clean before and after, whatever happens."""
        if self.tape is not None:
            self.tape.start()
        self.reporter.routed_thread = threading.get_ident()
        self._start_pass()
        error: BaseException | None = None
        try:
            # with offloading, not where the weights are
            self._generation_index = self.trace.begin(self._pipeline._execution_device)
            self._route = self._hooks.flowblend_route if self._hooks.flowblend_route.get_hookimpls() else None
            self._answer = self._hooks.flowblend_answer if self._hooks.flowblend_answer.get_hookimpls() else None
            called = self._hooks.flowblend_denoiser_called
            self._called = called if called.get_hookimpls() else None
            self._idle.begin()
            yield
            self._idle.end()
            if self.tape is not None:
                self.tape.recording.is_complete = True
        except BaseException as raised:
            error = raised
            self._idle.end()
            for letter in self.denoisers:
                self._reset(letter)  # the pipeline's own reset stands at the end of its call, which was not reached
            raise
        finally:
            self.reporter.routed_thread = None
            self._decision = None
            self._clock.forget()
            self.reporter.end(error)
            self._hooks.flowblend_generation_finished(pipeline=self._pipeline, trace=self.trace, error=error)

    def _start_pass(self) -> None:
        """A pass over the timesteps begins: no denoiser has seen any of it."""
        self._last_index = -1
        self._last_letter: dict[str | None, str] = {}
        self._entered_at: dict[str, int] = {}
        self._last_run: dict[tuple[str, str | None], int] = {}

    def unrouted(self, function: Callable[..., Output]) -> Callable[..., Output]:
        """A callback of the user's, in which denoisers answer as if nothing had been enabled."""
        from diffusers.callbacks import MultiPipelineCallbacks

        @functools.wraps(function)
        def call(*args: object, **kwargs: object) -> Output:
            thread, self.reporter.routed_thread = self.reporter.routed_thread, None
            try:
                return function(*args, **kwargs)
            finally:
                self.reporter.routed_thread = thread

        if not hasattr(function, "tensor_inputs"):
            return call
        # Pipelines ask diffusers' own kind of callback for its tensors, and tell the kind by its class.
        kind = type("UnroutedCallbacks", (MultiPipelineCallbacks,), {"__call__": lambda self, *args: call(*args)})
        return kind([cast(Any, function)])

    # -- one call ------------------------------------------------------------------------------------------------

    def call(self, host: nn.Module, args: Args, kwargs: Keywords) -> Output:
        """Answer one denoiser call, of the blend's pipeline or of another; in two threads one after the other.

        Caches keep what they are doing on the denoiser while it is called.
        """
        with self._turn:
            if not self.reporter.is_routing:
                self._idle.use(host)
                return self._base_class[id(host)].__call__(host, *args, **kwargs)
            return self._answer_call(args, kwargs)

    def _answer_call(self, args: Args, kwargs: Keywords) -> Output:
        decision = self._decision
        if decision is None:
            timestep = kwargs.get("timestep")
            if timestep is None and len(args) > 1:
                timestep = args[1]
            decision = self._decide(None, None, timestep)
        if self._answer is not None:
            return self._ask(decision.step, args, kwargs)
        step, denoiser, call = decision
        self._idle.use(denoiser)
        started = self.reporter.start(step)
        if self.tape is None:
            output = call(denoiser, *args, **kwargs)
            record = self.reporter.record(step, started, args, kwargs)
        else:
            output, record = self._call_on_tape(self.tape, decision, started, args, kwargs)
        if self._called is not None:
            self._called(step=step, denoiser=denoiser, outcome=record.outcome, time_ms=record.time_ms)
        if step.step_index + 1 < len(self._assignments):
            self._idle.expect(self.denoisers[self._assignments[step.step_index + 1].denoiser])
        return output

    def _ask(self, step: StepContext, args: Args, kwargs: Keywords) -> Output:
        """Let a ``flowblend_answer`` hook answer, and where none does, the denoiser that was chosen."""
        call = DenoiserCall(step, args, kwargs, functools.partial(self._run, step.denoiser))
        begun = self.reporter.begin_answer(step)
        output = self._answer(call=call)  # type: ignore[misc]
        if output is None:
            output = call.run()
        else:
            self._answers.check(output, args, kwargs, step, self._hooks.flowblend_answer)
        self.reporter.end_answer(begun, step, args, kwargs, call.is_predicted)
        return output

    def _run(self, chosen: str, step: StepContext, args: Args, kwargs: KeywordsView) -> Output:
        """One forward that a ``flowblend_answer`` hook asks for, in a cache context of its own where there is one."""
        letter = step.denoiser
        check_letter(letter, self.denoisers, step, "flowblend_answer asked for denoiser", self._hooks.flowblend_answer)
        denoiser = self.denoisers[letter]
        base = self._base_class[id(denoiser)]
        seen = self._last_run.get((letter, step.branch))
        if letter != chosen and (seen is None or seen < step.step_index - 1):  # the chosen one has entered already
            self._enter(step)
        self._last_run[letter, step.branch] = step.step_index
        self._idle.use(denoiser)
        with contextlib.nullcontext() if step.branch is None else _context_on(base, denoiser, step, {}):
            told, self.reporter.told = self.reporter.told, Told()  # what the hook has said is of its answer
            started = self.reporter.start(step)
            output = base.__call__(denoiser, *args, **kwargs)
            record = self.reporter.record(step, started, args, kwargs)
            self.reporter.told = told
        self._answers.see(output, args, kwargs)
        if self._called is not None:
            self._called(step=step, denoiser=denoiser, outcome=record.outcome, time_ms=record.time_ms)
        return output

    def _call_on_tape(
        self, tape: Tape, decision: _Decision, started: object, args: Args, kwargs: Keywords
    ) -> tuple[Output, CallRecord]:
        step, denoiser, call = decision
        if not tape.recording.calls:
            clock, scheduler = self._clock, self._pipeline.scheduler
            lists = (tuple(clock.timesteps), None if clock.sigmas is None else tuple(clock.sigmas))
            sampler = (type(scheduler).__name__, dict(scheduler.config), *lists)
            tape.begin(tuple(one.denoiser for one in self._assignments), sampler)
        inputs = checksum((args, kwargs))
        found = tape.answer(step, inputs)
        if found is not None:
            self.reporter.report_outcome(found.outcome, found.skipped)
            output = copied(found.output)
            record = self.reporter.record(step, started, args, kwargs)
            tape.keep(found._replace(step=step))
        else:
            output = call(denoiser, *args, **kwargs)
            record = self.reporter.record(step, started, args, kwargs)
            tape.keep(RecordedCall(step, inputs, copied(output), record.outcome, record.skipped))
        return output, record

    def cache_context(self, host: nn.Module, name: str, kwargs: Keywords) -> AbstractContextManager[object]:
        """A cache context on the denoiser that will answer, with what the pipeline left out filled in."""
        if not self.reporter.is_routing:
            return self._base_class[id(host)].cache_context(host, name, **kwargs)
        return _RoutedContext(self, name, kwargs)

    def reset_stateful_cache(self, host: nn.Module, recurse: bool = True) -> None:
        """Reset every denoiser's state between passes, not the host's alone."""
        if not self.reporter.is_routing:
            self._base_class[id(host)]._reset_stateful_cache(host, recurse)
            return
        for letter in self.denoisers:
            self._reset(letter, recurse)

    def _decide(self, context: KeywordsView | None, branch: str | None, timestep: object) -> _Decision:
        clock = self._clock
        if clock.refresh():
            self._assignments = self.schedule.assignments(len(clock.timesteps), clock.sigmas)
        index = clock.read(context, timestep)
        if index < self._last_index:
            self._start_pass()
        self._last_index = index
        if not 0 <= index < len(self._assignments):
            raise RoutingError(
                f"the pipeline is at step {index}, but its scheduler has {len(self._assignments)} timesteps; "
                "the schedule cannot say which denoiser answers."
            )
        letter, stage = self._assignments[index]
        sigmas = clock.sigmas
        step = StepContext(
            index,
            len(self._assignments),
            sigmas[index] if sigmas is not None else None,
            clock.timesteps[index],
            stage,
            letter,
            branch,
            self._generation_index,
        )
        if self._route is not None:
            step = self._overrule(step)
            letter = step.denoiser
        denoiser = self.denoisers[letter]
        self._note_answer(step)
        return _Decision(step, denoiser, self._base_class[id(denoiser)].__call__)

    def _overrule(self, step: StepContext) -> StepContext:
        letter = self._route(step=step)  # type: ignore[misc]
        if letter is None or letter == step.denoiser:
            return step
        check_letter(letter, self.denoisers, step, "flowblend_route returned", self._hooks.flowblend_route)
        return step._replace(denoiser=letter)

    def _note_answer(self, step: StepContext) -> None:
        """Tell whether the denoiser of this branch changes here, and if so let the new one enter."""
        letter, branch = step.denoiser, step.branch
        previous = self._last_letter.get(branch)
        if previous == letter:
            return
        self._last_letter[branch] = letter
        # Both guidance branches of a step change at once; only the first of them may reset. A branch that first
        # appears in the middle of a pass is no change.
        if previous is None and letter in self._entered_at:
            return
        self._enter(step)

    def _enter(self, step: StepContext) -> None:
        letter = step.denoiser
        if self._entered_at.get(letter) == step.step_index:
            return
        if letter not in self._entered_at or self.reentry == "recompute":
            self._reset(letter)
        self._entered_at[letter] = step.step_index
        self.reporter.entered(step)
        self._hooks.flowblend_stage_entered(step=step, denoiser=self.denoisers[letter], reentry=self.reentry)

    def _reset(self, letter: str, recurse: bool = True) -> None:
        denoiser = self.denoisers[letter]
        reset = getattr(self._base_class[id(denoiser)], "_reset_stateful_cache", None)
        if reset is not None:
            reset(denoiser, recurse)


class _RoutedContext:
    """``with denoiser.cache_context(...)``, entered on the denoiser that will answer."""

    __slots__ = ("_inner", "_kwargs", "_name", "_router")

    def __init__(self, router: ModelRouter, name: str, kwargs: Keywords) -> None:
        self._router, self._name, self._kwargs = router, name, kwargs

    def __enter__(self) -> object:
        router = self._router
        decision = router._decide(self._kwargs, self._name, None)
        step, denoiser, _ = decision
        self._inner = _context_on(router._base_class[id(denoiser)], denoiser, step, self._kwargs)
        entered = self._inner.__enter__()
        router._decision = decision
        return entered

    def __exit__(self, *exc: Any) -> bool | None:
        self._router._decision = None
        return self._inner.__exit__(*exc)


def _context_on(
    base: object, denoiser: nn.Module, step: StepContext, given: KeywordsView
) -> AbstractContextManager[object]:
    """A cache context on a denoiser, with its position where the pipeline has not ``given`` it."""
    context = getattr(base, "cache_context", None)
    if context is None:
        return contextlib.nullcontext()
    position = {"step_index": step.step_index, "sigma": step.sigma, "num_inference_steps": step.num_inference_steps}
    return context(denoiser, step.branch, **(position | dict(given)))
