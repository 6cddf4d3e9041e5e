"""Facts an adapter declares about its technique, and the verdict on a stack that follows from them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


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
        carries_step_state: it keeps tensors from one step to the next, which a change of denoiser makes stale.
        needs_uninterrupted_steps: it is wrong when a denoiser misses steps, reset or not.
        tells_branches_apart: its state is kept for each guidance branch.
        wraps: what of a denoiser it takes over: ``"blocks"``, ``"forward"``, ``"attention"`` or ``None``.
        denoiser_kinds: ``"transformer"``, ``"unet"``, or both.
        denoiser_classes: class names it runs on; empty for any.
        pipeline_classes: pipeline class names it runs on; empty for any.
    """

    family: Family
    changes_timesteps: bool = False
    fixes_sigmas: bool = False
    needs_guidance_off: bool = False
    carries_step_state: bool = False
    needs_uninterrupted_steps: bool = False
    tells_branches_apart: bool = True
    wraps: str | None = None
    denoiser_kinds: frozenset[str] = frozenset({"transformer", "unet"})
    denoiser_classes: frozenset[str] = frozenset()
    pipeline_classes: frozenset[str] = frozenset()
