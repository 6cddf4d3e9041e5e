"""Measure the distilled LoRAs against the same denoisers undistilled, and write their behaviour card.

``python -m flowblend_research.training.distillation.behaviour [--prompts N]``

Every row makes the same held-out prompts from the same seeds through the adapters that users have: few steps distilled
and without guidance, as few undistilled and with it (UniPC and Euler), and 50 steps of UniPC.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch

import flowblend_plugins
from flowblend_compat_matrix.measuring.metrics import frechet_distance, psnr_db
from flowblend_compat_matrix.reference.pair import (
    CALL_DEFAULTS,
    ReferencePair,
    evaluation_captions,
    held_out_videos,
    load_classifier,
    load_pair,
)
from flowblend_compat_matrix.reference.world import Caption
from flowblend_plugins.types import JsonObject

from ...tables import shown, table
from ..wan.behaviour import NUM_PROMPTS, Videos, generate
from ..wan.behaviour_page import NUM_WORLD_VIDEOS
from . import DISTILLED

CARD = DISTILLED / "behaviour_card.json"
SCHEDULES = {"large": "LLL", "small": "SSS"}


class Setting(NamedTuple):
    """One row before it is measured: what it is called, the adapter, and whether that turns guidance off."""

    name: str
    adapter: str
    is_distilled: bool = False


SETTINGS = (
    Setting("50 steps, UniPC", "unipc(num_inference_steps=50)"),
    *(
        setting
        for count in (8, 4)
        for setting in (
            Setting(f"{count} steps, distilled", f"distilled(num_inference_steps={count})", True),
            Setting(f"{count} steps, UniPC", f"unipc(num_inference_steps={count})"),
            Setting(f"{count} steps, Euler", f"flow_euler(num_inference_steps={count})"),
        )
    ),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the card.

    Attributes:
        side: ``"large"`` or ``"small"``.
        name: of its setting.
        num_calls: denoiser calls of one generation, every guidance branch.
        alignment: share of captioned attributes that are right.
        frechet_distance: of classifier features to those of real videos.
        psnr_by_prompt_db: to 50 steps of the same denoiser at the same seeds; empty for those.
    """

    side: str
    name: str
    num_calls: int
    alignment: float
    frechet_distance: float
    psnr_by_prompt_db: tuple[float, ...]


def make_videos(pair: ReferencePair, captions: list[Caption], side: str, setting: Setting) -> tuple[Videos, int]:
    """Videos ``[N, 9, 64, 64, 3]`` of one setting, and the denoiser calls of one generation."""
    call: JsonObject = {"num_inference_steps": None}  # left to the adapter
    if setting.is_distilled:
        call["guidance_scale"] = None
    with flowblend_plugins.enable(pair.pipeline, pair.small, SCHEDULES[side], adapters=[setting.adapter]) as blend:
        videos = generate(pair, captions, **call)
        assert blend.trace.last is not None
        return videos, len(blend.trace.last.calls)


def measure(pair: ReferencePair, side: str, num_prompts: int, settings: Sequence[Setting] = SETTINGS) -> list[Row]:
    """The rows of one denoiser, 50 steps first."""
    captions = evaluation_captions(num_prompts)
    classifier = load_classifier()
    world = classifier.features(held_out_videos(NUM_WORLD_VIDEOS))
    attributes = [caption.attributes for caption in captions]
    rows: list[Row] = []
    long: Videos | None = None
    for setting in settings:
        videos, num_calls = make_videos(pair, captions, side, setting)
        against = () if long is None else tuple(psnr_db(a, b) for a, b in zip(videos, long, strict=True))
        rows.append(
            Row(
                side=side,
                name=setting.name,
                num_calls=num_calls,
                alignment=classifier.alignment(videos, attributes),
                frechet_distance=frechet_distance(classifier.features(videos), world),
                psnr_by_prompt_db=tuple(round(value, 3) for value in against),
            )
        )
        long = videos if long is None else long
        print(to_markdown(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def to_markdown(rows: Sequence[Row]) -> str:
    """The table of the docs page."""
    heads = ("denoiser", "sampled in", "denoiser calls", "alignment", "Frechet distance", "PSNR to its 50 steps, dB")
    lines = table(heads, map(_cells, rows))
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    psnr = shown(float(np.mean(row.psnr_by_prompt_db)) if row.psnr_by_prompt_db else None)
    return row.side, row.name, str(row.num_calls), f"{row.alignment:.1%}", f"{row.frechet_distance:.2f}", psnr


def main() -> None:
    """Read the command line and write the card."""
    parser = argparse.ArgumentParser(prog="flowblend-distilled-card", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="how many held-out prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pair = load_pair()
    rows = [row for side in SCHEDULES for row in measure(pair, side, arguments.prompts)]
    card = {"prompts": arguments.prompts, **CALL_DEFAULTS, "rows": [asdict(row) for row in rows]}
    CARD.write_text(json.dumps(card, indent=2) + "\n")
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
