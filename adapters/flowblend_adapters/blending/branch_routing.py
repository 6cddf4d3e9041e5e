"""Branch routing: the large denoiser where the text is, the small one for the unconditional branch.

It does not pay (docs/blending.md has what was measured). It stays as the worked example of ``flowblend_route``, which
docs/hooks.md points to: a hook that overrules the schedule by guidance branch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flowblend_plugins import Adapter, AdapterError, AdapterTraits, AttachTarget, Family, hookimpl

from .residual import SMALL

if TYPE_CHECKING:
    from flowblend_plugins import StepContext

UNCOND = "uncond"


@dataclass(frozen=True, kw_only=True)
class BranchRouting(Adapter):
    """Give the unconditional branch to the small one.

    Give the unconditional branch to the small denoiser from a step on.

    Guidance multiplies whatever the two branches do not have in common, so at high scales it costs more than it saves,
    with ``corrected`` on top as well (docs/blending.md has what was measured).

    Args:
        first_step: from here on, counted from 0; earlier steps stay with the schedule. One beyond its last large step
            changes nothing. ``corrected`` needs at least one large step before it.
        refresh_every: every so many steps after that the schedule's denoiser answers after all; 0 for never.
    """

    first_step: int = 1
    refresh_every: int = 0

    name: ClassVar[str] = "branch_routing"
    page: ClassVar[str | None] = "docs/blending.md"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.BLENDING,
        changes_only=frozenset({"L"}),
        needs_branches_apart=True,
        compares_denoisers=True,
        wraps="route",
    )
    suggested: ClassVar[tuple[str, ...]] = ("branch_routing(first_step=4)", "branch_routing(first_step=2)")

    def __post_init__(self) -> None:
        for name in ("first_step", "refresh_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected an integer from 0 up")

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[_Routing]:
        if SMALL not in target.denoisers:
            raise AdapterError("adapter branch_routing needs a small denoiser, and none was given. Name one: small=….")
        yield _Routing(self)


class _Routing:
    def __init__(self, options: BranchRouting) -> None:
        self._options = options

    @hookimpl
    def flowblend_route(self, step: StepContext) -> str | None:
        passed, every = step.step_index - self._options.first_step, self._options.refresh_every
        if step.branch != UNCOND or passed < 0 or (every and passed % every == every - 1):
            return None
        return SMALL
