"""A TeaCache that the user patched in, as its scripts do: ``forward`` replaced, and attributes that count calls.

Such a patch keeps its state where two denoisers of a class may share it, tells guidance branches apart by the parity of
its counter, and counts the calls it sees. In a blend each denoiser and branch is handed a state of its own before each
call, with the counter where the step really stands. What the patch decides from that is its own affair.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, Family
from flowblend_plugins.types import Denoiser, Pipeline

if TYPE_CHECKING:  # listing plugins should not pay for torch
    from .patched import PatchedState

_SLOTS = ("transformer", "transformer_2", "unet")


@dataclass(frozen=True, kw_only=True)
class AdoptedTeaCache(Adapter):
    """Keep your own patched TeaCache in a blend.

    The user's own patched TeaCache, with its state by denoiser and branch and its counters at the real step.

    Args:
        mirror: put the same patch and settings on the denoisers that were blended in, too.
    """

    mirror: bool = False

    name: ClassVar[str] = "adopted_teacache"
    page: ClassVar[str | None] = "docs/caches/teacache.md"
    suggested: ClassVar[tuple[str, ...]] = ()  # it is found on a pipeline, not asked for
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        min_useful_steps=3,
        wraps="forward",
        sets=frozenset({"enable_teacache"}),
    )

    def obstacles(self, pipe: Pipeline) -> Iterable[tuple[str, str]]:
        if not patched_denoisers(pipe):
            yield (
                f"no patched TeaCache is enabled on this {type(pipe).__name__}",
                "Enable it as its script says, with enable_teacache = True, or use 'teacache'.",
            )

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[PatchedState]:
        from .patched import PatchedState

        own = patched_denoisers(target.pipeline)
        state = PatchedState(target.trace)
        with contextlib.ExitStack() as undo:
            for letter, denoiser in target.denoisers.items():
                source = denoiser if any(denoiser is one for one in own) else None
                undo.enter_context(state.serving(letter, denoiser, source or (own[0] if self.mirror else None)))
            yield state


def adopt_teacache(pipe: Pipeline) -> list[AdoptedTeaCache]:
    """The adapter for what the user patched in, if anything."""
    return [AdoptedTeaCache()] if patched_denoisers(pipe) else []


def is_patched(denoiser: Denoiser) -> bool:
    """Whether a TeaCache in the manner of its scripts is switched on, on the denoiser or on its class."""
    return (
        getattr(denoiser, "enable_teacache", None) is True
        and isinstance(getattr(denoiser, "cnt", None), int)
        and isinstance(getattr(denoiser, "num_steps", None), int)
    )


def patched_denoisers(pipe: Pipeline) -> list[Denoiser]:
    """Denoisers that the pipeline itself calls and that TeaCache has patched."""
    second = pipe.config.get("boundary_ratio") is not None
    slots = [slot for slot in _SLOTS if second or slot != "transformer_2"]
    found = [getattr(pipe, slot, None) for slot in slots]
    return [denoiser for denoiser in found if denoiser is not None and is_patched(denoiser)]
