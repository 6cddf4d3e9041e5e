"""The adapters of one blend: chosen, judged, put on, and chosen anew when the pipeline has changed under them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import nn

from .contract.adapter import Adapter, AttachTarget
from .contract.markers import hookimpl
from .contract.stack import judge_adapters, setting_of
from .contract.traits import Composition, Reason, StackSetting, refuse_together
from .errors import AdapterError, FlowBlendError, PluginError, RoutingError, StackError
from .manager import FlowblendPluginManager, PluginOrigin, adapters_by_name, adopted_adapters
from .pipelines.components import called_denoisers
from .pipelines.large_alone import mirrored, refuse_what_fits_one
from .pipelines.standing import PATCH_KINDS, Patch, Watch, marks_on, patches_on
from .schedule import StageSchedule
from .types import Pipeline

AttachGuard = Callable[[AttachTarget], object]


class AttachedStack:
    """Adapters stacked on one pipeline, from :meth:`attach` until :meth:`detach`.

    What the user switches on after ``enable()`` is treated as if it had come before: at the start of every generation
    the pipeline is compared with how it stood, and where it differs, all adapters are taken off, adopted and judged
    again, and put on again. A stack that is then refused stays off until the cause is gone, and so does every call.

    Attributes:
        adapters: first those of set-ups that the pipeline brought along, then those asked for.
        setting: the facts that the stack was judged against.
    """

    adapters: tuple[Adapter, ...]
    setting: StackSetting

    def __init__(
        self,
        pipe: Pipeline,
        slot: str,
        schedule: StageSchedule,
        reentry: str,
        requested: Sequence[Adapter],
        manager: FlowblendPluginManager,
    ) -> None:
        self._pipe, self._slot, self._schedule, self._reentry = pipe, slot, schedule, reentry
        self._requested, self._manager = tuple(requested), manager
        self._known = {name: kind.traits for name, kind in adapters_by_name(manager).items()}
        self._on: contextlib.ExitStack | None = None
        self._during = contextlib.ExitStack()
        self._watch: Watch | None = None

    def choose(self) -> None:
        """Adopt what the pipeline brings along and judge the stack; nothing is attached yet.

        Raises:
            StackError: the stack cannot work on this pipeline.
        """
        self.adapters = (*adopted_adapters(self._manager, self._pipe, self._requested), *self._requested)
        self.setting = setting_of(self._pipe, self._slot, self._schedule, self._reentry)
        registered = adapters_by_name(self._manager).values()
        judge_adapters(self.adapters, self._pipe, self.setting, registered, self._unclaimed()).refuse_if_it_must()

    def attach(self, target: AttachTarget, guards: Sequence[tuple[str, AttachGuard]] = ()) -> None:
        """Put the chosen adapters on, and note how the pipeline then stands.

        Args:
            target: the blend.
            guards: beside the adapters, what refuses the blend or gives a plugin of it, by name.
        """
        self._target, self._guards = target, guards
        self._own_scheduler = self._pipe.scheduler
        with contextlib.ExitStack() as undo:
            large, others = target.denoisers["L"], self._answering_for_the_large(target)
            refuse_what_fits_one(self._pipe, large, others)
            undo.enter_context(mirrored(large, others, self._unexplained(patches_on(large)), self._taken_over()))
            self._attach_adapters(target, undo)
            for name, attach in guards:
                self._add(attach(target), PluginOrigin(name), undo)
            marks = frozenset[str]().union(*(traits.sets for traits in self._known.values()))
            self._watch = Watch(self._pipe, target.denoisers, marks)
            self._scheduler = self._pipe.scheduler
            self._add(self, PluginOrigin("attached stack"), undo)
            self._on = undo.pop_all()

    def detach(self) -> None:
        """Take all adapters off the pipeline."""
        on, self._on = self._on, None
        if on is not None:
            on.close()

    def refresh(self) -> None:
        """Adopt, judge and attach anew where the pipeline has changed since it was last looked at.

        Raises:
            StackError, RoutingError: what is on the pipeline now would have been refused by ``enable()``.
        """
        if self._on is not None:
            assert self._watch is not None
            if not self._watch.changes():
                return
            self._refuse_other_scheduler()
            self.detach()
        self.choose()
        self.attach(self._target, self._guards)

    @hookimpl
    def flowblend_stage_entered(self, denoiser: nn.Module) -> None:
        """Mirror, or refuse, what the pipeline has set on the large denoiser since the generation began."""
        assert self._watch is not None
        others = self._answering_for_the_large(self._target)
        if not any(denoiser is other for other in others.values()):
            return
        found = self._watch.changes()
        came = [
            Patch(*key[1:], value)  # type: ignore[arg-type]
            for key, value in found.items()
            if key[0] == "L" and key[1] in PATCH_KINDS and value is not None
        ]
        if came:
            self._during.enter_context(mirrored(self._target.denoisers["L"], others, self._unexplained(came)))

    @hookimpl
    def flowblend_generation_finished(self) -> None:
        self._during.close()

    def _answering_for_the_large(self, target: AttachTarget) -> dict[str, nn.Module]:
        """The denoisers that may be called in the large one's place, by letter."""
        hosts = called_denoisers(self._pipe, self._slot)
        hooks = self._manager.hook
        is_open = hooks.flowblend_route.get_hookimpls() or hooks.flowblend_answer.get_hookimpls()
        is_open = is_open or any(adapter.traits.wraps in ("route", "answer") for adapter in self.adapters)
        return {
            letter: denoiser
            for letter, denoiser in target.denoisers.items()
            if (is_open or letter in self._schedule.letters) and not any(denoiser is host for host in hosts)
        }

    def _taken_over(self) -> frozenset[str]:
        return frozenset[str]().union(*(adapter.traits.sets for adapter in self.adapters))

    def _unexplained(self, patches: Iterable[Patch]) -> list[Patch]:
        """Patches, without each ``forward`` of a technique that sets one, as the attribute that it sets tells."""
        large = getattr(self._pipe, self._slot)
        marks = [marks_on(large, traits.sets) for traits in self._known.values() if traits.wraps == "forward"]
        return [patch for patch in patches if not (any(marks) and patch.kind in ("forward", "class forward"))]

    def _attach_adapters(self, target: AttachTarget, undo: contextlib.ExitStack) -> None:
        """Attach every adapter; what several of them refuse only now is refused together."""
        refusals: list[FlowBlendError] = []
        for adapter in self.adapters:
            origin = PluginOrigin(adapter.name, kind="adapter")
            try:
                attached = undo.enter_context(_context_of(adapter, target))
            except (StackError, AdapterError) as error:
                refusals.append(error)
                continue
            except BaseException as error:
                origin.blame(error, "fails in attach()", keeps_errors=True)
                raise
            if attached is not None:
                self._add(attached, origin, undo)
        if len(refusals) == 1:
            raise refusals[0]
        refuse_together([str(error) for error in refusals])

    def _add(self, plugin: object, origin: PluginOrigin, undo: contextlib.ExitStack) -> None:
        self._manager.add(plugin, origin)
        undo.callback(self._manager.drop, plugin)

    def _refuse_other_scheduler(self) -> None:
        if self._pipe.scheduler is not self._scheduler and self._scheduler is not self._own_scheduler:
            raise RoutingError(
                f"pipe.scheduler was replaced after enable() by a {type(self._pipe.scheduler).__name__}, in place of "
                f"the {type(self._scheduler).__name__} that an adapter had put there. To keep yours, call disable(), "
                "then enable() without that adapter."
            )

    def _unclaimed(self) -> Iterator[Reason]:
        """Reasons against accelerations that are switched on, as adapters declare, and not taken over."""
        denoiser = getattr(self._pipe, self._slot)
        for name, traits in self._known.items():
            on = sorted(mark for mark, value in marks_on(denoiser, traits.sets).items() if value)
            if on and self._taken_over().isdisjoint(on):
                yield Reason(
                    Composition.REFUSED,
                    f"{', '.join(on)} is set on the {type(denoiser).__name__}, so what {name!r} takes over is switched "
                    "on there, and it was not taken over",
                    "Switch it off, or set it up in the way that can be taken over.",
                )


def _context_of(adapter: Adapter, target: AttachTarget) -> contextlib.AbstractContextManager[object]:
    context: object = adapter.attach(target)
    if not isinstance(context, contextlib.AbstractContextManager):
        raise PluginError(
            f"adapter {adapter.name!r}: attach() gave {context!r}, expected a context manager. Decorate it with "
            "contextlib.contextmanager, and yield an object with hooks, or None."
        )
    return context
