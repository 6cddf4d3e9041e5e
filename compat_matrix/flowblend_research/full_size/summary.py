"""Figures that follow from the rounds: speed-ups, what the denoisers' own times predict, switches, extrapolation."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

from flowblend_plugins.schedule import StageSchedule
from flowblend_plugins.types import JsonObject, JsonView

from .measure import NUM_ROUNDS, SCHEDULES
from .pairs import SMALL_CALL, FullSizePair
from .session import NUM_STEPS


def rounds_of(measured: JsonView) -> list[JsonObject]:
    """The rounds that were measured whole."""
    found = [measured.get(f"round {number + 1}", {}) for number in range(NUM_ROUNDS)]
    return [one for one in found if "LLL" in one]


def summarize(pair: FullSizePair, measured: JsonView) -> JsonObject:
    """Summary of the rounds; empty where none was measured whole.

    ``speedup`` is over LLL of the same round; ``predicted_speedup`` is what the times of single forwards of the two
    denoisers, measured in the same rounds, give; ``switch_ms`` is how much longer the first call after a switch is than
    its denoiser's usual one; ``extrapolated`` is computed, not measured.
    """
    rounds = rounds_of(measured)
    if not rounds:
        return {}
    forward_s = {letter: statistics.median(one[letter] for one in rounds) for letter in "LS"}
    flops = measured.get("flops", {}).get(SMALL_CALL)
    num_steps, branches = pair.extrapolated
    return {
        "num_rounds": len(rounds),
        "forward_s": forward_s,
        "schedules": {letters: _schedule(pair, letters, rounds, forward_s, flops) for letters in SCHEDULES},
        "switch_ms": _switches(rounds),
        "extrapolated": {
            "num_steps": num_steps,
            "guidance_branches": branches,
            "denoiser_s": {
                letters: branches * _total(_assigned(pair, letters, num_steps), forward_s) for letters in SCHEDULES
            },
        },
    }


def _schedule(
    pair: FullSizePair,
    letters: str,
    rounds: Sequence[JsonView],
    forward_s: Mapping[str, float],
    flops: Mapping[str, JsonView] | None,
) -> JsonObject:
    assigned = _assigned(pair, letters, NUM_STEPS)
    ratios = [one["LLL"]["time_s"] / one[letters]["time_s"] for one in rounds]
    predicted = NUM_STEPS * forward_s["L"] / _total(assigned, forward_s)
    found: JsonObject = {
        "steps": StageSchedule.named(letters, pair.early, pair.late).describe(NUM_STEPS),
        "time_s": statistics.median(one[letters]["time_s"] for one in rounds),
        "speedup": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        "predicted_speedup": predicted,
        "fraction_of_predicted": statistics.median(ratios) / predicted,
    }
    for count in ("full", "linear") if flops else ():
        of = {letter: flops[letter][count] for letter in "LS"} if flops else {}
        found[f"speedup_by_{count}_flops"] = NUM_STEPS * of["L"] / _total(assigned, of)
    return found


def _assigned(pair: FullSizePair, letters: str, num_steps: int) -> list[str]:
    schedule = StageSchedule.named(letters, pair.early, pair.late)
    return [letter for letter, _ in schedule.assignments(num_steps)]


def _total(assigned: Sequence[str], of: Mapping[str, float]) -> float:
    return sum(of[letter] for letter in assigned)


def _switches(rounds: Sequence[JsonView]) -> list[float]:
    usual = {
        letter: statistics.median(ms for one in rounds for _, ms in one[letter * 3]["calls"][1:]) for letter in "LS"
    }
    found = []
    for one in rounds:
        calls = one["LSL"]["calls"]
        for (before, _), (letter, ms) in itertools.pairwise(calls):
            if letter != before:
                found.append(ms - usual[letter])
    return found
