"""``frontier.json`` and the page of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from flowblend_plugins.types import JsonObject

from ..tables import table
from .advantage import Advantage, Level, advantages, levels, usual_ratio
from .race import Point

GOAL = 1.3
Measured = Mapping[str, Sequence[Point]]


def to_json(measured: Measured, about: JsonObject) -> JsonObject:
    """Every point, and the advantage at each operating point of each single technique."""
    return {
        "points": [_point(name, point) for name, points in measured.items() for point in points],
        "advantage_at_equal_psnr": [_advantage(one) for one in advantages(measured)],
        "levels": [_level(one) for one in (*levels(measured), *levels(measured, "flops"))],
        **about,
    }


def to_markdown(measured: Measured, about: JsonObject) -> str:
    """The page that is committed with the figures."""
    environment, num = about["environment"], about["num_prompts"]
    lines = [
        "# Computed stacks against single techniques",
        "",
        f"Made by `{about['command']}` on {environment['device']}, {environment['date'][:10]}; the data are in "
        "[frontier.json](frontier.json). The embedded reference pair at its operating point.",
        f"There are {num} held-out prompts and seeds, on which nothing was calibrated. Every stack runs once in each "
        "round, one round for each prompt, and large-only three times.",
        "Speed is the median over the rounds of the ratio to large-only, without decoding; FLOPs are the denoisers', "
        "all products. What this pair cannot tell: [The reference pair](reference_pair.md). How the stacks were "
        "computed: [Planning](planning.md).",
        "",
        "![Speed against PSNR, alignment and Frechet distance](frontier.png)",
        "",
        "## At equal fidelity",
        "",
        *_levels(levels(measured), "by time"),
        *_levels(levels(measured, "flops"), "by FLOPs"),
        "## At each technique's operating points",
        "",
        *table(
            ("technique", "setting", "speed", "PSNR", "fastest computed, at least as faithful", "advantage"),
            map(_operating_point, advantages(measured)),
        ),
        "",
        "## Every point",
        "",
        *table(
            ("technique", "stack", "speed (quartiles)", "FLOPs", "PSNR", "captions right", "Frechet distance"),
            (_row(name, point) for name, points in measured.items() for point in points),
        ),
        "",
    ]
    if about["refused"]:
        lines += ["## Refused on this pair", ""]
        lines += [f"- `{name}`: {reason}" for name, reason in about["refused"].items()]
    return "\n".join([*lines, ""])


def _levels(found: Sequence[Level], measure: str) -> Iterator[str]:
    if not found:
        yield from (f"No computed stack reaches the useful range {measure}.", "")
        return
    ratios = [level.ratio for level in found]
    met = sum(ratio >= GOAL for ratio in ratios)
    yield (
        f"**{measure.capitalize()}**, from {found[0].psnr_db:g} to {found[-1].psnr_db:g} dB, the cheapest computed "
        f"stack is {min(ratios):.2f} to {max(ratios):.2f} times as cheap as the cheapest single technique as "
        f"faithful, the median {usual_ratio(found):.2f}; at {met} of {len(found)} levels {GOAL} times or "
        "more, the goal."
    )
    yield ""
    rows = (
        (
            f"{level.psnr_db:g} dB",
            f"{level.technique}: `{level.single.configuration.text}`",
            f"{level.single.gain(level.cost):.2f}×, {level.single.psnr_db:.1f} dB",
            f"`{level.computed.configuration.text}`",
            f"{level.computed.gain(level.cost):.2f}×, {level.computed.psnr_db:.1f} dB",
            f"**{level.ratio:.2f}×**",
        )
        for level in found
    )
    yield from (*table(("at least", "single technique", "", "computed stack", "", "computed over single"), rows), "")


def _operating_point(one: Advantage) -> tuple[str, ...]:
    computed = "none is" if one.computed is None else f"{one.computed.speedup:.2f}×, {one.computed.psnr_db:.1f} dB"
    setting = " + ".join(one.point.configuration.adapters) or one.point.configuration.schedule
    ratio = "–" if one.ratio is None else f"{one.ratio:.2f}×"
    return one.technique, f"`{setting}`", f"{one.point.speedup:.2f}×", f"{one.point.psnr_db:.1f} dB", computed, ratio


def _row(technique: str, point: Point) -> tuple[str, ...]:
    low, high = point.speedup_range
    return (
        technique,
        f"`{point.configuration.text}`",
        f"{point.speedup:.2f}× ({low:.2f}-{high:.2f})",
        f"{point.flops_fraction:.3f}",
        f"{point.psnr_db:.1f} ± {point.psnr_std_db:.1f} dB",
        f"{point.alignment:.1%}",
        f"{point.frechet:.2f}",
    )


def _known(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else None


def _point(technique: str, point: Point) -> JsonObject:
    return {
        "technique": technique,
        "config": point.configuration.text,
        "speedup_over_large": _known(point.speedup),
        "speedup_quartiles": [_known(value) for value in point.speedup_range],
        "flops_fraction": _known(point.flops_fraction),
        "psnr_db": _known(point.psnr_db),
        "psnr_std_db": _known(point.psnr_std_db),
        "alignment": _known(point.alignment),
        "frechet": _known(point.frechet),
    }


def _advantage(one: Advantage) -> JsonObject:
    return {
        "technique": one.technique,
        "config": one.point.configuration.text,
        "psnr_db": _known(one.point.psnr_db),
        "speedup_over_large": _known(one.point.speedup),
        "tuned_config": None if one.computed is None else one.computed.configuration.text,
        "tuned_speedup_over_large": None if one.computed is None else _known(one.computed.speedup),
        "advantage": _known(one.ratio),
    }


def _level(level: Level) -> JsonObject:
    return {
        "cost": level.cost,
        "psnr_db": level.psnr_db,
        "technique": level.technique,
        "single_config": level.single.configuration.text,
        "tuned_config": level.computed.configuration.text,
        "advantage": _known(level.ratio),
    }
