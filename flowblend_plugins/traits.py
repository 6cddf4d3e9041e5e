"""Facts an adapter declares about its technique, and the verdict on a stack that follows from them.

Nothing here knows an adapter by name: two techniques are judged by what each of them takes over, keeps and needs.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .errors import StackError

REENTRY_POLICIES = ("recompute", "keep")


class Family(str, enum.Enum):
    """The three kinds of acceleration that compose with the router."""

    STEP_REDUCTION = "step_reduction"
    FEATURE_CACHING = "feature_caching"
    DISTILLED_SAMPLER = "distilled_sampler"


@dataclass(frozen=True, kw_only=True)
class AdapterTraits:
    """What is true of one technique, whatever it is stacked with.

    Attributes:
        family: which of the three kinds it is.
        changes_timesteps: it sets the number or the positions of the steps, or replaces the scheduler.
        fixes_sigmas: it prescribes the list of sigmas, so nothing else may change it.
        needs_guidance_off: it is right only without classifier-free guidance.
        takes_few_steps: its steps are so few and so far apart that hardly anything stays alike from one to the next.
        carries_step_state: it keeps tensors of a denoiser from one step to the next, which go stale while another
            denoiser answers.
        needs_uninterrupted_steps: it is wrong when a denoiser misses steps, reset or not.
        spans_stages: what it answers in a stage depends on calls of an earlier stage, also with
            ``reentry="recompute"``, so that a stage cannot be replayed from a recording.
        tells_branches_apart: its state is kept for each guidance branch.
        min_useful_steps: with fewer steps in a generation than this it changes nothing (its warm-up takes them all).
        changes_only: letters of the denoisers that it changes anything of; empty for whichever is called.
        wraps: what of a denoiser it takes over: ``"blocks"``, ``"forward"``, ``"attention"``, ``"weights"``, ``None``.
        denoiser_kinds: ``"transformer"``, ``"unet"``, or both.
        denoiser_classes: class names it runs on (subclasses too); empty for any.
        pipeline_classes: pipeline class names it runs on (subclasses too); empty for any.
    """

    family: Family
    changes_timesteps: bool = False
    fixes_sigmas: bool = False
    needs_guidance_off: bool = False
    takes_few_steps: bool = False
    carries_step_state: bool = False
    needs_uninterrupted_steps: bool = False
    spans_stages: bool = False
    tells_branches_apart: bool = True
    min_useful_steps: int = 0
    changes_only: frozenset[str] = frozenset()
    wraps: str | None = None
    denoiser_kinds: frozenset[str] = frozenset({"transformer", "unet"})
    denoiser_classes: frozenset[str] = frozenset()
    pipeline_classes: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class StackSetting:
    """The facts a stack is judged against. ``None`` is what cannot be known before the pipeline is called.

    Attributes:
        denoiser_kind: ``"transformer"`` or ``"unet"``.
        denoiser_classes: class names of the large denoiser, its own first, then those it inherits from.
        pipeline_classes: likewise of the pipeline.
        denoiser_changes: the stage schedule calls more than one denoiser.
        denoisers: letters of those that it calls; empty where that is not known.
        reentry: ``"recompute"`` or ``"keep"``.
        guidance: whether classifier-free guidance is on.
        branches_called_apart: whether the guidance branches are two calls, not one batched call.
        num_inference_steps: steps of the generation.
    """

    denoiser_kind: str
    denoiser_classes: tuple[str, ...]
    pipeline_classes: tuple[str, ...]
    denoiser_changes: bool = True
    denoisers: frozenset[str] = frozenset()
    reentry: str = "recompute"
    guidance: bool | None = None
    branches_called_apart: bool | None = None
    num_inference_steps: int | None = None


_AUDITED = contextvars.ContextVar("flowblend_refusals_audited", default=False)


@contextlib.contextmanager
def refusals_audited() -> Iterator[None]:
    """In here what is declared incompatible is run all the same, to see whether the declaration is true."""
    token = _AUDITED.set(True)
    try:
        yield
    finally:
        _AUDITED.reset(token)


class Composition(str, enum.Enum):
    """The four verdicts on a stack, from the best to the worst."""

    COMPOSES = "composes"
    COMPOSES_WITH_RESET = "composes_with_reset"
    INERT = "inert"
    REFUSED = "refused"


_BEST_TO_WORST = tuple(Composition)


@dataclass(frozen=True)
class Reason:
    """Why a stack is judged as it is: the verdict it argues for, what was found, and what to do about it.

    ``adapter`` is the one that is inert, of a reason that says so.
    """

    composition: Composition
    found: str
    remedy: str = ""
    adapter: str = ""

    def __str__(self) -> str:
        return f"{self.found}. {self.remedy}" if self.remedy else f"{self.found}."


@dataclass(frozen=True)
class Verdict:
    """The judgement on a stack, with every reason for it (never none, and never only the first)."""

    composition: Composition
    reasons: tuple[Reason, ...]

    def of(self, composition: Composition) -> list[Reason]:
        """The reasons that argue for one verdict."""
        return [reason for reason in self.reasons if reason.composition is composition]

    def refuse_if_it_must(self) -> None:
        """Raise ``StackError`` with all reasons at once if the stack is refused."""
        refusals = [] if _AUDITED.get() else self.of(Composition.REFUSED)
        if len(refusals) == 1:
            raise StackError(str(refusals[0]))
        if refusals:
            listed = " ".join(f"({number}) {reason}" for number, reason in enumerate(refusals, start=1))
            raise StackError(f"this stack cannot work, for {len(refusals)} reasons: {listed}")


Stack = Sequence[tuple[str, AdapterTraits]]


def judge(stack: Stack, setting: StackSetting, obstacles: Sequence[Reason] = ()) -> Verdict:
    """Judge a stack of techniques on one pipeline from facts alone.

    Args:
        stack: adapter names (for the wording of reasons only) and their traits, in the order they were asked for.
        setting: what is known of the pipeline, the schedule and the call.
        obstacles: further reasons that adapters found themselves on this pipeline.

    Returns:
        The worst verdict that any reason argues for, with all reasons, those for it first. A stack is inert only if all
        of it is; what is inert beside something that is not is told among the reasons.
    """
    reasons = [*obstacles, *_between_adapters(stack)]
    for name, traits in stack:
        reasons += _on_this_pipeline(name, traits, setting)
        reasons += _over_time(name, traits, setting)
    if not reasons:
        found = "no adapter disturbs another, and none keeps state that goes stale" if stack else "nothing is stacked"
        reasons.append(Reason(Composition.COMPOSES, found))
    inert = {reason.adapter for reason in reasons if reason.composition is Composition.INERT}
    compositions = {reason.composition for reason in reasons}
    if Composition.REFUSED not in compositions and not inert.issuperset(name for name, _ in stack):
        compositions.discard(Composition.INERT)
        if not compositions:
            others = ", ".join(repr(name) for name, _ in stack if name not in inert)
            reasons.append(Reason(Composition.COMPOSES, f"nothing disturbs {others}"))
            compositions.add(Composition.COMPOSES)
    composition = max(compositions, key=_BEST_TO_WORST.index)
    reasons.sort(key=lambda reason: (reason.composition is not composition, -_BEST_TO_WORST.index(reason.composition)))
    return Verdict(composition, tuple(reasons))


def _between_adapters(stack: Stack) -> Iterator[Reason]:
    for (a, first), (b, second) in itertools.combinations(stack, 2):
        both = f"{a!r} and {b!r}" if a != b else f"{a!r}, asked for twice,"
        if first.fixes_sigmas and second.fixes_sigmas:
            yield _refused(f"{both} each prescribe their own list of sigmas", "Keep one of the two.")
        elif first.fixes_sigmas or second.fixes_sigmas:
            fixing, changing = (a, b) if first.fixes_sigmas else (b, a)
            if (second if first.fixes_sigmas else first).changes_timesteps:
                yield _refused(
                    f"{fixing!r} prescribes the list of sigmas, and {changing!r} would change it",
                    f"Leave out {changing!r}.",
                )
        elif first.changes_timesteps and second.changes_timesteps:
            yield _refused(f"{both} both decide the sampler and its timesteps", "Keep one of the two.")
        if first.wraps is not None and first.wraps == second.wraps:
            yield _refused(f"{both} both take over the denoiser's {first.wraps}", "Keep one of the two.")
        elif first.family is second.family is Family.FEATURE_CACHING:
            yield _refused(
                f"{both} are two feature caches on one denoiser, so one would cache what the other reused",
                "Keep one of the two.",
            )
        for few, kept, name, cache in ((first, second, a, b), (second, first, b, a)):
            if few.takes_few_steps and kept.family is Family.FEATURE_CACHING:
                yield Reason(
                    Composition.INERT,
                    f"{name!r} takes few steps, far apart, and {cache!r} reuses only what stays alike between steps",
                    f"Leave out {cache!r}; where it reuses something all the same, the trace shows it.",
                    cache,
                )


def _on_this_pipeline(name: str, traits: AdapterTraits, setting: StackSetting) -> Iterator[Reason]:
    denoiser, pipeline = setting.denoiser_classes[0], setting.pipeline_classes[0]
    if setting.denoiser_kind not in traits.denoiser_kinds:
        yield _refused(
            f"{name!r} runs on a {_listed(traits.denoiser_kinds)}, and the denoiser of {pipeline} is a "
            f"{setting.denoiser_kind}",
            f"Leave out {name!r}.",
        )
    elif traits.denoiser_classes and traits.denoiser_classes.isdisjoint(setting.denoiser_classes):
        yield _refused(
            f"{name!r} runs on {_listed(traits.denoiser_classes)}, and the denoiser is a {denoiser}",
            f"Leave out {name!r}.",
        )
    if traits.pipeline_classes and traits.pipeline_classes.isdisjoint(setting.pipeline_classes):
        yield _refused(
            f"{name!r} runs on {_listed(traits.pipeline_classes)}, and this is a {pipeline}", f"Leave out {name!r}."
        )
    if traits.needs_guidance_off and setting.guidance:
        yield _refused(
            f"{name!r} is right only without classifier-free guidance, and guidance is on",
            "Call the pipeline with guidance_scale=1.0.",
        )
    if traits.carries_step_state and not traits.tells_branches_apart and setting.branches_called_apart:
        found = f"{name!r} keeps one state for both guidance branches, and {pipeline} calls the denoiser once for each"
        if setting.guidance:
            yield _refused(
                f"{found}, so one branch would be answered from the other's state",
                f"Call the pipeline with guidance_scale=1.0, leave out {name!r}, or use a cache that tells branches "
                "apart.",
            )
        elif setting.guidance is None:
            yield Reason(Composition.COMPOSES, f"{found}; it is right without guidance, and a call with it is refused")


def _over_time(name: str, traits: AdapterTraits, setting: StackSetting) -> Iterator[Reason]:
    if setting.num_inference_steps is not None and setting.num_inference_steps < traits.min_useful_steps:
        yield Reason(
            Composition.INERT,
            f"{name!r} changes nothing in fewer than {traits.min_useful_steps} steps, and this generation has "
            f"{setting.num_inference_steps}",
            f"Leave out {name!r}, or take more steps.",
            name,
        )
    if traits.changes_only and setting.denoisers and traits.changes_only.isdisjoint(setting.denoisers):
        yield Reason(
            Composition.INERT,
            f"{name!r} changes denoiser {_listed(traits.changes_only)} alone, and this schedule never calls it",
            f"Leave out {name!r}.",
            name,
        )
    if not setting.denoiser_changes:
        return
    if traits.needs_uninterrupted_steps:
        yield _refused(
            f"{name!r} is wrong when a denoiser misses steps, and this schedule changes denoisers",
            f'Leave out {name!r}, or use schedule "LLL" or "SSS".',
        )
    elif traits.carries_step_state and setting.reentry == "recompute":
        yield Reason(
            Composition.COMPOSES_WITH_RESET,
            f"{name!r} keeps a denoiser's state from step to step; it is forgotten when that denoiser returns",
        )
    elif traits.carries_step_state:
        yield Reason(
            Composition.COMPOSES,
            f'{name!r} keeps a denoiser\'s state from step to step, and reentry="keep" lets it be used when it is '
            "stale, as asked",
        )


def _refused(found: str, remedy: str) -> Reason:
    return Reason(Composition.REFUSED, found, remedy)


def _listed(names: frozenset[str]) -> str:
    return " or ".join(sorted(names))
