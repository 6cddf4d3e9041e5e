"""FlowBlending on one pipeline: a pair, a schedule and adapters put on, and all of it taken off again."""

from __future__ import annotations

import contextlib
import copy
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from .attached_stack import AttachedStack
from .contract.adapter import Adapter, AttachTarget, arguments_set_by
from .contract.stack import judge_call
from .contract.traits import Composition, Verdict
from .errors import PairError, RoutingError
from .manager import FlowblendPluginManager, make_adapters, make_plugin_manager, pairs_by_name
from .pairs.loading import LoadingOptions, check_blendable, load_denoiser
from .pairs.precision import warn_of_other_precisions
from .pairs.preset import pair_of
from .pipelines.components import (
    EnabledPipeline,
    PipelineDenoisers,
    called_denoisers,
    denoisers_of,
    is_enabled,
    refuse_compile_wrapper,
)
from .pipelines.control_scales import control_scales_fitted
from .pipelines.idle import IdleDenoisers
from .pipelines.timesteps import set_as_called
from .routing.clock import Clock
from .routing.host import router_of
from .routing.replay import Recording, Tape
from .routing.router import ModelRouter
from .schedule import StageSchedule
from .step import Outcome, StepContext
from .trace.trace import Trace
from .types import Keywords, KeywordsView, Output, Pipeline

DenoiserSource = str | Path | nn.Module | Pipeline

# Pipelines and large denoisers on which a thread is putting a blend, by id, for other threads to see.
_BEING_MADE: set[int] = set()
_LOCK = threading.RLock()


class Guard(Protocol):
    """Checks that refuse a blend or a call, put on by whoever makes the blend (a calibration, for one)."""

    def check_denoisers(self, denoisers: Mapping[str, nn.Module]) -> None:
        """Raise where these denoisers, by letter, must not be blended; nothing is attached yet."""

    def attach(self, target: AttachTarget) -> object:
        """Raise where the enabled pipeline is refused, else give the plugin object that watches its calls."""


class Blend:
    """FlowBlending on one pipeline, from :func:`~flowblend_plugins.enable` until :meth:`disable`.

    Attributes:
        trace: what ran, generation by generation.
        schedule: the stage schedule in force.
        denoisers: letter to denoiser.
    """

    def __init__(
        self,
        pipe: Pipeline,
        small: DenoiserSource | None,
        schedule: StageSchedule,
        adapters: Iterable[str | Adapter] = (),
        reentry: str = "recompute",
        further: Mapping[str, DenoiserSource] = types.MappingProxyType({}),
        plugins: Iterable[object] = (),
        guards: Sequence[Guard] = (),
        idle: str = "keep",
        small_options: KeywordsView = types.MappingProxyType({}),
    ) -> None:
        found = denoisers_of(pipe)
        loading = LoadingOptions(small_options, may_be_on_cpu=idle != "keep")
        with _alone_on(pipe, found):
            self._put_on(pipe, found, small, schedule, adapters, reentry, further, plugins, guards, idle, loading)

    def _put_on(
        self,
        pipe: Pipeline,
        found: PipelineDenoisers,
        small: DenoiserSource | None,
        schedule: StageSchedule,
        adapters: Iterable[str | Adapter],
        reentry: str,
        further: Mapping[str, DenoiserSource],
        plugins: Iterable[object],
        guards: Sequence[Guard],
        idle: str,
        loading: LoadingOptions,
    ) -> None:
        self.pipeline = pipe
        self.schedule = schedule
        self.plugin_manager: FlowblendPluginManager = make_plugin_manager(plugins)
        requested = make_adapters(self.plugin_manager, tuple(adapters))
        stack = self._stack = AttachedStack(pipe, found.slot, schedule, reentry, requested, self.plugin_manager)
        stack.choose()
        self.denoisers: dict[str, nn.Module] = _collect_denoisers(
            pipe, found, schedule, {"S": small, **further}, loading
        )
        warn_of_other_precisions(self.denoisers)
        placed = IdleDenoisers(self.denoisers, idle)
        for guard in guards:
            guard.check_denoisers(self.denoisers)
        self.trace: Trace = Trace(self.denoisers, schedule)
        others = [m for m in self.denoisers.values() if not any(m is host for host in found.called)]
        pair = pair_of(pipe, self.denoisers.get("S"), pairs_by_name(self.plugin_manager).values())
        target = self._target = AttachTarget(pipe, self.denoisers, self.trace.reporter, schedule, reentry, pair)
        router = ModelRouter(
            pipe, self.denoisers, found.called, schedule, self.plugin_manager.hook, self.trace, reentry, placed
        )
        enabled = self._enabled = EnabledPipeline(pipe, found, others, self._run_generation)
        self._router, self._found = router, found

        with contextlib.ExitStack() as undo:
            undo.callback(enabled.detach)
            enabled.attach()
            undo.callback(router.detach)
            router.attach()
            undo.enter_context(control_scales_fitted(self.denoisers["L"], others))
            undo.callback(placed.detach)
            placed.attach()
            undo.callback(stack.detach)
            stack.attach(target, [(type(guard).__name__, guard.attach) for guard in guards])
            self._undo = undo.pop_all()

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The attached adapters: first those of set-ups that the pipeline brought along, then those asked for."""
        return self._stack.adapters

    @property
    def is_enabled(self) -> bool:
        return self._undo is not None

    def preview(
        self, num_inference_steps: int, **call_arguments: Any
    ) -> tuple[list[StepContext], list[Sequence[Outcome] | None]]:
        """The steps of a generation to come, and for each adapter what every step will do, ``None`` if it cannot tell.

        Args:
            num_inference_steps: as the pipeline is called with.
            call_arguments: further ones of the call that decide its timesteps: ``timesteps``, or the size of the video.

        Raises:
            ScheduleError: the schedule does not fit the number of steps.
            RoutingError: the timesteps follow from something else than these arguments; it says from what.
        """
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        if getattr(scheduler, "ignores_pipeline", False):  # a sampler of ours that has a list of its own
            if call_arguments.get("timesteps") is not None or call_arguments.get("denoise_strength", 1.0) < 1.0:
                raise RoutingError(
                    "an adapter chooses the noise levels of this pass when the call is made, by its timesteps and "
                    "denoise_strength, so they are not known before."
                )
            scheduler.set_timesteps(num_inference_steps)
        else:
            call_arguments = {"num_inference_steps": num_inference_steps, **call_arguments}
            unknown = set_as_called(self.pipeline, scheduler, call_arguments)
            if unknown is not None:
                raise RoutingError(
                    f"the timesteps that {type(self.pipeline).__name__} sets in {type(scheduler).__name__} are not "
                    f"known before the call: {unknown}."
                )
        clock = Clock(self.pipeline, scheduler)
        clock.refresh()
        assignments = self.schedule.assignments(len(clock.timesteps), clock.sigmas)
        sigmas = clock.sigmas or [None] * len(assignments)
        steps = [
            StepContext(index, len(assignments), sigmas[index], clock.timesteps[index], stage, letter, None, 0)
            for index, (letter, stage) in enumerate(assignments)
        ]
        return steps, [adapter.plan(self._target, steps) for adapter in self.adapters]

    def plan(
        self, num_inference_steps: int, **call_arguments: Any
    ) -> tuple[list[StepContext], list[Sequence[Outcome] | None]]:
        """Do what :meth:`preview` does, under its old name."""
        warnings.warn("Blend.plan is now Blend.preview.", DeprecationWarning, stacklevel=2)
        return self.preview(num_inference_steps, **call_arguments)

    @contextlib.contextmanager
    def recorded(self, replay: Sequence[Recording] = ()) -> Iterator[Recording]:
        """Record the next pipeline call, answering from earlier recordings what it shares with them.

        The result is bit for bit that of the whole run; only the denoiser calls of the shared stages are not made. See
        :mod:`flowblend_plugins.routing.replay` for what is shared, and never time a call in here.

        Args:
            replay: recordings of the same pipeline call (prompt, seed, steps) with the same denoisers and adapters on
                other schedules.

        Raises:
            RoutingError: a recording is of something else; or what a denoiser answers here depends on more than its
                stage (a ``flowblend_route`` hook, ``reentry="keep"``, an adapter whose state spans stages).
        """
        self._refuse_to_replay_what_depends_on_the_past()
        for source in replay:
            if not source.is_complete:
                raise RoutingError("this recording is of a generation that did not come to its end. Record it again.")
            if source.adapters != self.adapters:
                raise RoutingError("this recording was made with other adapters, so it answers nothing here.")
            answered = {call.step.denoiser for call in source.calls}
            if any(source.denoisers[letter] is not self.denoisers.get(letter) for letter in answered):
                raise RoutingError("this recording was made with other denoisers, so it answers nothing here.")
        recording = Recording(self.adapters, dict(self.denoisers))
        if self._router.tape is not None:
            raise RoutingError("a recording is under way already. Leave its `with` block first.")
        self._router.tape = Tape(recording, replay)
        try:
            yield recording
        finally:
            self._router.tape = None

    def _refuse_to_replay_what_depends_on_the_past(self) -> None:
        spanning = [adapter.name for adapter in self.adapters if adapter.traits_with_options().spans_stages]
        if spanning:
            cause = f"{', '.join(spanning)} carries state from one stage into the next"
        elif self._stack.setting.reentry != "recompute":
            cause = f"reentry={self._stack.setting.reentry!r} carries cached state from one stage into the next"
        elif self.plugin_manager.hook.flowblend_route.get_hookimpls():
            cause = "a flowblend_route hook decides who answers, so it is not known before the call"
        elif self.plugin_manager.hook.flowblend_answer.get_hookimpls():
            cause = "a flowblend_answer hook answers the calls, so what they depend on is not known"
        else:
            return
        raise RoutingError(f"this cannot be recorded and replayed: {cause}. Run it whole.")

    def foresee(self, **call_arguments: Any) -> Verdict:
        """The verdict on the stack for a pipeline call with these arguments, before it is made.

        What adapters set themselves (steps, guidance) is as they will set it.
        """
        arguments = call_arguments | arguments_set_by(self.adapters)
        return judge_call(self.adapters, self._stack.setting, self.pipeline, arguments)

    def disable(self) -> None:
        """Take everything off: the pipeline is byte for byte what it was before :func:`~flowblend_plugins.enable`.

        Raises:
            RoutingError: called while the pipeline is generating.
        """
        with _LOCK:  # another thread may be disabling too
            if not self._router.in_use.acquire(blocking=False):
                raise RoutingError(
                    "disable() was called in the middle of a generation. Call it when the pipeline returns."
                )
            try:
                undo, self._undo = self._undo, None
                if undo is not None:
                    undo.close()
            finally:
                self._router.in_use.release()

    def __enter__(self) -> Blend:
        return self

    def __exit__(self, *exc: object) -> None:
        self.disable()

    def _run_generation(self, call: Callable[..., Output], arguments: Keywords) -> Output:
        with self._router.alone():
            self._refuse_replaced_denoisers()
            self._stack.refresh()
            return self._generate(call, arguments)

    def _generate(self, call: Callable[..., Output], arguments: Keywords) -> Output:
        with self._router.generation():
            self.plugin_manager.hook.flowblend_configure_generation(pipeline=self.pipeline, call_arguments=arguments)
            verdict = judge_call(self.adapters, self._stack.setting, self.pipeline, arguments)
            verdict.refuse_if_it_must()
            for reason in verdict.of(Composition.INERT):
                self.trace.reporter.note(f"declared inert: {reason}")
            for name in ("callback_on_step_end", "callback"):
                if callable(arguments.get(name)):
                    arguments[name] = self._router.unrouted(arguments[name])
            return call(**arguments)

    def _refuse_replaced_denoisers(self) -> None:
        replaced = self._enabled.replaced_slots()
        if [*map(id, called_denoisers(self.pipeline, self._found.slot))] != [*map(id, self._found.called)]:
            replaced.insert(0, self._found.slot)
        if replaced:
            raise RoutingError(
                f"the denoiser of this {type(self.pipeline).__name__} in `{replaced[0]}` was replaced after enable(), "
                "so it would not be called. Call disable(), then enable() again. To compile it, use "
                f"pipe.{replaced[0]}.compile()."
            )


@contextlib.contextmanager
def _alone_on(pipe: Pipeline, found: PipelineDenoisers) -> Iterator[None]:
    """Refuse a second blend on a pipeline or its large denoiser, also while the first is still being made."""
    claimed = {*map(id, (pipe, *found.called))}
    with _LOCK:
        _refuse_second_blend(pipe, found)
        _BEING_MADE.update(claimed)
    try:
        yield
    finally:
        with _LOCK:
            _BEING_MADE.difference_update(claimed)


def _refuse_second_blend(pipe: Pipeline, found: PipelineDenoisers) -> None:
    if is_enabled(pipe) or id(pipe) in _BEING_MADE:
        raise RoutingError(
            f"FlowBlending is already enabled on this {type(pipe).__name__}. Call disable() on the blend that "
            "enable() returned, then enable() again."
        )
    if any(router_of(host) is not None or id(host) in _BEING_MADE for host in found.called):
        raise RoutingError(
            "the large denoiser of this pipeline is shared with another pipeline on which FlowBlending is enabled. "
            "Disable it there first, or load the denoiser a second time."
        )


def _collect_denoisers(
    pipe: Pipeline,
    found: PipelineDenoisers,
    schedule: StageSchedule,
    sources: Mapping[str, DenoiserSource | None],
    loading: LoadingOptions,
) -> dict[str, nn.Module]:
    """Load, check and name the denoisers; a refusal here leaves the pipeline untouched."""
    slot = found.slot
    denoisers: dict[str, nn.Module] = {"L": found.called[0]}
    for letter, source in sources.items():
        if source is None:
            continue
        denoiser = load_denoiser(source, pipe, slot, loading if letter == "S" else loading.without_options())
        refuse_compile_wrapper(denoiser, f"denoiser {letter}")
        if router_of(denoiser) is not None:
            raise PairError(
                f"denoiser {letter} is the large denoiser of another pipeline on which FlowBlending is enabled. "
                "Disable it there first, or load it a second time."
            )
        check_blendable(pipe, slot, letter, denoiser, source, loading)
        denoisers[letter] = denoiser
    for number, host in enumerate(found.called):
        if not any(host is denoiser for denoiser in denoisers.values()):
            name = f"{slot}_{number + 1}"
            raise PairError(
                f"this {type(pipe).__name__} has two experts (boundary_ratio={pipe.config.boundary_ratio}), but {name} "
                f'has no letter. Pass denoisers={{"M": pipe.{name}}} and a schedule that calls M.'
            )
    missing = sorted(schedule.letters - denoisers.keys())
    if missing:
        given = "small=" if missing == ["S"] else "denoisers={" + ", ".join(f"{m!r}: ..." for m in missing) + "}"
        raise PairError(
            f"schedule {schedule.text!r} calls denoiser {', '.join(missing)}, but only "
            f"{', '.join(sorted(denoisers))} {'is' if len(denoisers) == 1 else 'are'} given. Pass {given}."
        )
    return denoisers
