"""Denoisers that a cache is put on: the option ``denoisers`` of every caching adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn

from flowblend_plugins import AttachTarget, RoutingError, StackError
from flowblend_plugins.types import Denoiser

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins.trace.reporter import CallReporter


def check_stage_options(denoisers: str | None, warmup_steps: int) -> None:
    """Raise ``ValueError`` unless ``denoisers`` is ``None`` or letters, and ``warmup_steps`` counts steps."""
    if denoisers is not None and not (denoisers and denoisers.isalpha() and denoisers.isupper()):
        raise ValueError(f'denoisers={denoisers!r}: expected the letters of denoisers, like "L" or "LS"')
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps}: expected at least 0")


def choose_denoisers(name: str, letters: str | None, target: AttachTarget) -> Mapping[str, nn.Module]:
    """The denoisers that adapter ``name`` is put on, by letter; all of them where ``letters`` is ``None``.

    Raises:
        StackError: one of the letters is no denoiser of this blend, or stands for one that cache-dit is enabled on.
    """
    unknown = [letter for letter in dict.fromkeys(letters or "") if letter not in target.denoisers]
    if unknown:
        there = ", ".join(sorted(target.denoisers))
        raise StackError(
            f"{name!r}: denoisers={letters!r} names {', '.join(unknown)}, and the denoisers of this blend are {there}. "
            "Name only these, or leave the option out to put the cache on all of them."
        )
    chosen = {letter: target.denoisers[letter] for letter in dict.fromkeys(letters or target.denoisers)}
    for letter, denoiser in chosen.items():
        if has_cache_dit(denoiser):  # neither library would notice the other
            raise StackError(
                f"{name!r} on denoiser {letter}: cache-dit is enabled on it already. Call cache_dit.disable_cache() on "
                f"it first, or leave out {name!r}."
            )
    return chosen


def has_cache_dit(denoiser: Denoiser | None) -> bool:
    """Whether the user has enabled cache-dit on this denoiser; does not import it."""
    manager = getattr(denoiser, "__dict__", {}).get("_context_manager")
    return type(manager).__module__.partition(".")[0] == "cache_dit"


@contextlib.contextmanager
def caches_of_one_blend(name: str, denoisers: Mapping[str, nn.Module], target: AttachTarget) -> Iterator[None]:
    """Keep the caches of other blends off these denoisers, by letter, while adapter ``name`` is on them.

    Raises:
        StackError: a cache of another blend is on one of them.
    """
    with contextlib.ExitStack() as undo:
        for letter, denoiser in denoisers.items():
            own = _Claim(denoiser, target.trace)
            claim = denoiser.__dict__.setdefault("__deepcopy__", own)
            if claim is own:
                undo.callback(denoiser.__dict__.pop, "__deepcopy__")
            elif claim.trace is not target.trace:
                raise StackError(
                    f"{name!r} on denoiser {letter}: a cache of another blend is on it already, and one denoiser takes "
                    f"those of one blend. Call disable() on the other blend first, leave {name!r} out, or load the "
                    "denoiser a second time."
                )
        yield


class _Claim:
    """Says whose caches are on a denoiser, and refuses copies of it: their hooks would still call the original."""

    def __init__(self, denoiser: nn.Module, trace: CallReporter) -> None:
        self.trace = trace
        self._name = type(denoiser).__name__

    def __call__(self, memo: object) -> NoReturn:
        raise RoutingError(
            f"{self._name} cannot be pickled or deep-copied while FlowBlending has a cache on it. Call disable() "
            "first, or use save_pretrained()."
        )

    __reduce_ex__ = __call__
