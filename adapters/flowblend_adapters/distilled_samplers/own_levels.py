"""Noise levels for a few-step denoiser between many-step ones: each side steps where it was made to step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

_SAME = 1e-3  # two noise levels closer than this are one


class MixedLevels(NamedTuple):
    """Noise levels, falling, without the final 0, and the stage schedule in steps that goes with them."""

    sigmas: tuple[float, ...]
    schedule: str


def mix_levels(dense: Sequence[float], letters: Sequence[str], few: Sequence[float]) -> MixedLevels | None:
    """Let ``S`` take its stages in the steps it was distilled for, and ``L`` take the rest in its own.

    Where S's stage begins, L goes on until the first of S's levels; S's last step ends on one of them, and from there L
    goes on. FlowBlending's LTX runs are counted so: 20 of 40 large steps and 4 of 8 distilled ones (docs/flops.md).

    Args:
        dense: noise levels of all steps of the undistilled denoiser, without the final 0.
        letters: ``"L"`` or ``"S"`` for each of them, by the stage schedule.
        few: noise levels of the distilled denoiser, without the final 0.

    Returns:
        ``None`` where a stage of S contains none of its levels, or a third denoiser is called.
    """
    if set(letters) - {"L", "S"}:
        return None
    following = [*dense[1:], 0.0]
    stages = []
    for letter, indices in itertools.groupby(range(len(dense)), key=letters.__getitem__):
        own = list(indices)
        if letter == "S":
            begin, end = dense[own[0]], following[own[-1]]
            taken = [level for level in few if end + _SAME < level <= begin + _SAME]
            if not taken:
                return None
            stages.append((taken, max((level for level in few if level <= end + _SAME), default=0.0)))
    steps = [(level, "S") for taken, _ in stages for level in taken]
    steps += [(end, "L") for _, end in stages if end > 0.0]
    steps += [
        (level, "L") for level in dense if all(level > taken[0] + _SAME or level < end - _SAME for taken, end in stages)
    ]
    steps.sort(key=lambda step: -step[0])
    runs = [(letter, len(list(group))) for letter, group in itertools.groupby(letter for _, letter in steps)]
    return MixedLevels(tuple(level for level, _ in steps), ",".join(f"{letter}:{count}" for letter, count in runs))
