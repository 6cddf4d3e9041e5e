"""The contract of an adapter: our integration of one technique (not a LoRA, not the `adapters` library)."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..types import Keywords, Pipeline
from .traits import AdapterTraits

if TYPE_CHECKING:  # plugin modules import this one, and should not pay for torch when they are only listed
    from torch import nn

    from ..pairs.preset import PairPreset
    from ..schedule import StageSchedule
    from ..step import Outcome, StepContext
    from ..trace.reporter import CallReporter


@dataclass(frozen=True)
class AttachTarget:
    """Pipeline and denoisers that an adapter is attached to.

    Attributes:
        pipeline: the diffusers pipeline.
        denoisers: letter to denoiser, ``{"L": large, "S": small}`` and any further ones.
        trace: the live channel: ``trace.step`` is where the denoiser call in progress stands (``None`` for a call that
            is not routed), and ``trace.report_outcome("reuse")`` says that it was not computed.
        schedule: the stage schedule in force.
        reentry: ``"recompute"`` or ``"keep"``: what becomes of cached state when a denoiser returns.
        pair: the registered pair that these denoisers are; ``None`` where they are none that is known.
    """

    pipeline: Pipeline
    denoisers: Mapping[str, nn.Module]
    trace: CallReporter
    schedule: StageSchedule
    reentry: str = "recompute"
    pair: PairPreset | None = None


class Adapter(abc.ABC):
    """One technique and its options, to be attached to any number of pipelines.

    A subclass is a frozen keyword-only dataclass of its options, checked in ``__post_init__`` (raise ``ValueError``
    with the option, its value and what is accepted), plus ``name``, ``traits`` and :meth:`attach`.
    """

    name: ClassVar[str]
    """What users write: a Python identifier, unique among all installed plugins."""

    traits: ClassVar[AdapterTraits]
    """Facts about the technique, from which the core judges what it stacks with."""

    suggested: ClassVar[tuple[str, ...]] = ()
    """Settings worth trying, the careful one first, as ``"name(option=value)"``: what the matrix takes of a family.

    One that says ``suggested = ()`` itself is not tried unasked; one that says nothing is tried as it is.
    """

    package: ClassVar[str | None] = None
    """An optional package that the technique cannot do without; where it is missing, the adapter is refused."""

    page: ClassVar[str | None] = None
    """URL of the page that documents it, or its path in the repository."""

    @abc.abstractmethod
    def attach(self, target: AttachTarget) -> contextlib.AbstractContextManager[object]:
        """A context manager with the technique on, from entering it until leaving it.

        Entering gives the object that takes part in the blend as a plugin: any ``flowblend_*`` hook it implements is
        called for this pipeline alone, and it is where state belongs (never this frozen adapter, never a class).
        Give ``None`` where no hook is needed. On leaving, the pipeline and the denoisers are what they were, bit for
        bit; that holds too when entering fails halfway.
        """

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        """Obstacles to the technique on this pipeline beyond the traits, as (what was found, what to do).

        Asked before anything is attached, so that all reasons of a stack are reported at once. An adapter that names
        others as a way out may take a second argument, ``registered``: the adapter classes that users can ask for.
        """
        del pipe
        return ()

    def traits_with_options(self) -> AdapterTraits:
        """Facts about the technique with these options: :attr:`traits`, unless an option changes them."""
        return self.traits

    def count_timesteps(self, num_inference_steps: int) -> int:
        """Length of the sampler's list of timesteps for this many steps; samplers that call twice a step have more."""
        return num_inference_steps

    def plan(self, target: AttachTarget, steps: Sequence[StepContext]) -> Sequence[Outcome] | None:
        """Outcome of each step, where it can be known before the run; ``None`` where it cannot.

        Args:
            target: what this adapter is attached to.
            steps: of one generation, in order, without a guidance branch.
        """
        del target, steps
        return None


def arguments_set_by(adapters: Iterable[Adapter]) -> Keywords:
    """Arguments of a pipeline call that adapters set: options with the argument's own name and a value."""
    return {
        name: value
        for adapter in adapters
        for name in ("num_inference_steps", "guidance_scale")
        if (value := getattr(adapter, name, None)) is not None
    }
