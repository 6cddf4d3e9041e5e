"""Facts an adapter declares about its technique, and what a verdict on a stack is made of.

Nothing here knows an adapter by name: two techniques are judged by what each of them takes over, keeps and needs.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import StackError

REENTRY_POLICIES = ("recompute", "keep")


class Family(str, enum.Enum):
    """The kinds of acceleration that compose with the router."""

    STEP_REDUCTION = "step_reduction"
    FEATURE_CACHING = "feature_caching"
    DISTILLED_SAMPLER = "distilled_sampler"
    BLENDING = "blending"
    GUIDANCE = "guidance"


@dataclass(frozen=True, kw_only=True)
class AdapterTraits:
    """Facts about one technique, whatever it is stacked with.

    Attributes:
        family: which of these kinds it is.
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
        needs_in_order: letters that the schedule must call one after the other; else it changes nothing.
        needs_branches_apart: it tells guidance branches apart, so each must be a call of its own.
        compares_denoisers: it puts outputs of two denoisers together, so they must be of one kind.
        own_guidance: a denoiser that it changes answers what is guided already, and the others what is not.
        wraps: what of a denoiser it takes over: ``"blocks"``, ``"forward"``, ``"attention"``, ``"weights"``,
            ``"answer"`` (what the pipeline is told), ``"route"``, ``None``.
        sets: names of what the technique leaves on a denoiser that it is switched on for without FlowBlending:
            attributes (of the denoiser or its class) that are then true, hooks of diffusers', and packages whose
            functions take the place of a ``forward``. By these it is noticed when it comes after ``enable()``.
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
    needs_in_order: tuple[str, ...] = ()
    needs_branches_apart: bool = False
    compares_denoisers: bool = False
    own_guidance: bool = False
    wraps: str | None = None
    sets: frozenset[str] = frozenset()
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
        denoiser_order: letters of those that it calls, in the order of its stages; empty where that is not known.
        reentry: ``"recompute"`` or ``"keep"``.
        guidance: whether classifier-free guidance is on.
        branches_called_apart: whether the guidance branches are two calls, not one batched call; ``None`` where the
            pipeline does not name them.
        num_inference_steps: steps of the generation.
    """

    denoiser_kind: str
    denoiser_classes: tuple[str, ...]
    pipeline_classes: tuple[str, ...]
    denoiser_changes: bool = True
    denoiser_order: tuple[str, ...] = ()
    reentry: str = "recompute"
    guidance: bool | None = None
    branches_called_apart: bool | None = None
    num_inference_steps: int | None = None


_AUDITED = contextvars.ContextVar("flowblend_refusals_audited", default=False)


@contextlib.contextmanager
def refusals_audited() -> Iterator[None]:
    """Run refused stacks all the same inside this context, to test whether the refusal is true."""
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


@dataclass(frozen=True)
class Reason:
    """One reason for a verdict: the composition it argues for, what was found, and what to do about it.

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
        if not _AUDITED.get():
            refuse_together([str(reason) for reason in self.of(Composition.REFUSED)])


def refuse_together(reasons: Sequence[str]) -> None:
    """Raise one ``StackError`` with all reasons, each with its remedy; nothing where there is none."""
    if len(reasons) == 1:
        raise StackError(reasons[0])
    if reasons:
        listed = " ".join(f"({number}) {reason}" for number, reason in enumerate(reasons, start=1))
        raise StackError(f"this stack cannot work, for {len(reasons)} reasons: {listed}")
