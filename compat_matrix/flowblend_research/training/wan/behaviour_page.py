"""The behaviour card as a page: what was measured, beside what is published, and which aims it meets."""

from __future__ import annotations

from dataclasses import dataclass

from flowblend_compat_matrix.reference.pair import CALL_DEFAULTS
from flowblend_plugins.types import JsonObject

from ...tables import shown, table
from .denoisers import SAMPLING_SHIFT

EARLY, LATE = 0.4, 0.2
NUM_WORLD_VIDEOS = 512
HALF = "half the steps"
REUSE = "reuse at 1.5x"
TEACACHE = "TeaCache at 1.5x"
WANS_SETTINGS: JsonObject = {"num_inference_steps": 50, "guidance_scale": 5.0}
WANS_SHIFT = 3.0

PUBLISHED = {
    "SSS": "10-12 dB",
    "LSS": "23.0 dB",
    "LSL": "21.7-23.9 dB, SSIM .82-.84",
    HALF: "15.8 dB, SSIM .70",
    TEACACHE: "18.6 dB, SSIM .69",
}
"""WAN 2.1 against its own LLL: schedules measured on the published clips, 25 of 50
steps and TeaCache at 1.5x on WAN 14B."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of generating, measured. PSNR and SSIM are against LLL, mean and standard deviation over prompts."""

    name: str
    num_large_steps: int
    num_small_steps: int
    psnr_db: float | None
    psnr_std_db: float | None
    psnr_by_prompt_db: list[float] | None
    ssim: float | None
    ssim_std: float | None
    alignment: float
    frechet_distance: float
    high_frequency_error: float
    flicker: float
    seconds: float


@dataclass(frozen=True)
class Check:
    """One of the ranges aimed for, and whether it holds."""

    aim: str
    found: str
    holds: bool


def check(rows: list[Row]) -> list[Check]:
    """Check which of the ranges aimed for hold; decided by the figures themselves, not by what they are rounded to."""
    by_name = {row.name: row for row in rows}
    lll, lsl, lss, sss, sll = (by_name[name] for name in ("LLL", "LSL", "LSS", "SSS", "SLL"))
    half, reuse, teacache = by_name[HALF], by_name[REUSE], by_name[TEACACHE]

    def db(row: Row) -> float:
        return float("nan") if row.psnr_db is None else row.psnr_db

    def points(row: Row) -> str:
        return f"{100 * row.alignment:.1f} %"

    distances = [row.frechet_distance for row in (lll, lsl, lss, sss)]
    return [
        Check("half the steps at or under 24 dB", f"{db(half):.1f} dB", db(half) <= 24.0),
        Check("reuse at 1.5x at or under LSL", f"{db(reuse):.1f} and {db(lsl):.1f} dB", db(reuse) <= db(lsl)),
        Check("TeaCache at 1.5x at or under LSL", f"{db(teacache):.1f} and {db(lsl):.1f} dB", db(teacache) <= db(lsl)),
        Check("LSL 19-26 dB", f"{db(lsl):.1f} dB", 19.0 <= db(lsl) <= 26.0),
        Check("SSS 9-15 dB", f"{db(sss):.1f} dB", 9.0 <= db(sss) <= 15.0),
        Check("SLL within 3 dB of SSS", f"{db(sll):.1f} and {db(sss):.1f} dB", abs(db(sll) - db(sss)) <= 3.0),
        Check(
            "LSS worse than LSL in detail (high-frequency error)",
            f"{lss.high_frequency_error:.3f} and {lsl.high_frequency_error:.3f}",
            lss.high_frequency_error > lsl.high_frequency_error,
        ),
        Check("alignment of LLL at least 90 %", points(lll), lll.alignment >= 0.90),
        Check(
            "alignment of LSL within 2 points of LLL",
            f"{points(lsl)} and {points(lll)}",
            abs(lsl.alignment - lll.alignment) <= 0.02,
        ),
        Check(
            "alignment of SSS at least 5 points under LLL",
            f"{points(sss)} and {points(lll)}",
            sss.alignment <= lll.alignment - 0.05,
        ),
        Check(
            "Frechet distance LLL < LSL < LSS < SSS",
            " < ".join(f"{distance:.2f}" for distance in distances).replace(" < ", ", "),
            distances == sorted(distances),
        ),
    ]


_HEADS = ("", "steps L + S", "PSNR, dB", "SSIM", "alignment", "Frechet", "HF error", "flicker", "published WAN")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.num_large_steps} + {row.num_small_steps}",
        shown(row.psnr_db, ".1f", row.psnr_std_db),
        shown(row.ssim, ".2f", row.ssim_std),
        f"{100 * row.alignment:.1f} %",
        f"{row.frechet_distance:.3f}",
        shown(None if row.psnr_db is None else row.high_frequency_error, ".3f"),
        f"{row.flicker:.4f}",
        PUBLISHED.get(row.name, "-"),
    )


def to_markdown(card: JsonObject, rows: list[Row], wans: list[Row], checks: list[Check]) -> str:
    """The card as a page."""
    lines = [
        "# Behaviour card of the reference pair",
        "",
        "Written by `python -m flowblend_research.training.wan.behaviour`; also as `behaviour_card.json`.",
        "",
        f"{card['num_prompts']} held-out prompts, one seed each, the same for every row; "
        f"{CALL_DEFAULTS['num_inference_steps']} UniPC steps, shift {SAMPLING_SHIFT:g}, guidance "
        f"{CALL_DEFAULTS['guidance_scale']:g}. Stages by fraction: early {EARLY:g}, late {LATE:g}. PSNR and SSIM are "
        "against LLL (Euler against Euler), mean ± standard deviation over prompts. *Reuse at 1.5x* answers every "
        "third step with the velocities of the step before; *TeaCache at 1.5x* is the adapter `teacache` at its "
        f"careful threshold, which chooses the steps itself. One small forward is {card['small_flops_fraction']:.3f} "
        "of a large one's FLOPs (all products, attention included).",
        "",
    ]
    world = card["world"]
    real, coded = (
        (
            f"{100 * world[f'{what}alignment']:.1f} %",
            f"{world[f'{what}frechet_distance']:.3f}",
            "-",
            f"{world[f'{what}flicker']:.4f}",
            "",
        )
        for what in ("", "codec_")
    )
    lines += table(
        _HEADS,
        [
            *map(_cells, rows),
            ("*world videos*", "", "", "", *real),
            ("*through the codec*", "", f"{world['codec_psnr_db']:.1f} (to themselves)", "", *coded),
        ],
    )
    lines += [
        "",
        "Alignment is the share of captioned attributes that the classifier finds right; the last two rows, the very "
        "scenes that the captions were written for, are what it and the codec allow at most. The Frechet distance is "
        f"to {NUM_WORLD_VIDEOS} held-out world videos, in the classifier's 48 features; with so few videos it is "
        "biased upwards, equally for every row. Published figures are of WAN 2.1 (half the steps and TeaCache: 14B) "
        "and of other prompts: they say where to expect the figures, not what they should equal. "
        "SLL, SSL and Euler have no published figure.",
        "",
        "## What was aimed for",
        "",
        *table(
            ("aim", "found", ""),
            ((item.aim, item.found, "holds" if item.holds else "**does not hold**") for item in checks),
        ),
        "",
        "## At WAN's own settings",
        "",
        f"{WANS_SETTINGS['num_inference_steps']} UniPC steps, shift {WANS_SHIFT:g}, guidance "
        f"{WANS_SETTINGS['guidance_scale']:g}, {card['num_prompts'] // 2} of the prompts. Here half the steps cost "
        "next to nothing, which is why the pair is not used at these settings.",
        "",
        *table(_HEADS, map(_cells, wans)),
    ]
    return "\n".join([*lines, ""])
