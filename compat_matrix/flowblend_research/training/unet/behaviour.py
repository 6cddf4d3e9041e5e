"""Measure whether the UNet pair behaves as a large and a small model do, and write its behaviour card.

``python -m flowblend_research.training.unet.behaviour [--weights DIR] [--prompts N]``

Every row makes the same prompts from the same seeds and is compared with the large denoiser alone. Alignment is the
share of captioned attributes that the video classifier of the first pair finds in nine copies of the still; what a
caption says of motion is left out, since a still cannot show it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import flowblend_plugins
from flowblend_compat_matrix.measuring.metrics import psnr_db, ssim
from flowblend_compat_matrix.reference.pair import evaluation_captions, load_classifier
from flowblend_compat_matrix.reference.unet.pair import CALL_DEFAULTS, WEIGHTS, UNetPair, load_unet_pair
from flowblend_compat_matrix.reference.world import NUM_FRAMES, Caption, caption, render, sample_scene
from flowblend_plugins.types import JsonObject

from ...tables import shown, table

Stills = NDArray[np.float32]
NUM_PROMPTS = 48
BATCH = 16


class Setting(NamedTuple):
    """One row of the card before it is measured: a schedule, a stack, and the steps."""

    name: str
    schedule: str | None
    stack: tuple[str, ...] = ()
    num_inference_steps: int = CALL_DEFAULTS["num_inference_steps"]


SETTINGS = (
    Setting("large only (LLL)", None),
    Setting("small only (SSS)", "SSS"),
    Setting("LSL", "LSL"),
    Setting("LSS", "LSS"),
    Setting("large only, half the steps", None, num_inference_steps=CALL_DEFAULTS["num_inference_steps"] // 2),
    Setting("LLL + deepcache(interval=2)", "LLL", ("deepcache(interval=2)",)),
    Setting("LLL + deepcache(interval=3)", "LLL", ("deepcache(interval=3)",)),
    Setting("LSL + deepcache(interval=2)", "LSL", ("deepcache(interval=2)",)),
    Setting("LSL + deepcache(interval=3)", "LSL", ("deepcache(interval=3)",)),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the card; PSNR (mean, and by prompt) and SSIM are against large-only."""

    name: str
    psnr_db: float | None
    psnr_by_prompt_db: tuple[float, ...]
    ssim: float | None
    alignment: float


@torch.no_grad()
def make_stills(pair: UNetPair, captions: Sequence[Caption], setting: Setting) -> Stills:
    """A still for every caption, ``[N, 64, 64, 3]`` in 0..1; the noise of each depends on its number alone."""
    blend = contextlib.nullcontext()
    if setting.schedule is not None:
        blend = flowblend_plugins.enable(pair.pipeline, pair.small, setting.schedule, adapters=setting.stack)
    pipeline = pair.pipeline
    parts = []
    with blend:
        for start in range(0, len(captions), BATCH):
            texts = [item.text for item in captions[start : start + BATCH]]
            generators = [torch.Generator().manual_seed(start + number) for number in range(len(texts))]
            call = {**CALL_DEFAULTS, "num_inference_steps": setting.num_inference_steps}
            parts.append(pipeline(texts, generator=generators, output_type="np", return_dict=False, **call)[0])
    return np.concatenate(parts).astype(np.float32)


def alignment(stills: Stills, captions: Sequence[Caption]) -> float:
    """Share of captioned attributes, motion left out, that the classifier finds."""
    named = [[attribute for attribute in item.attributes if attribute.name != "motion"] for item in captions]
    verdicts = load_classifier().judge(np.repeat(stills[:, None], NUM_FRAMES, axis=1), named)
    return float(np.mean([right for verdict in verdicts for right in verdict]))


def true_stills(num: int, seed: int = 1000) -> Stills:
    """The stills that `evaluation_captions` were said of: what alignment can be at best."""
    parts = []
    for index in range(num):
        rng = np.random.default_rng((seed, index))
        scene = sample_scene(rng)
        caption(scene, rng)
        parts.append(render(scene)[NUM_FRAMES // 2])
    return np.stack(parts)


def measure(pair: UNetPair, num_prompts: int) -> list[Row]:
    """All rows, the true stills first."""
    captions = evaluation_captions(num_prompts)
    best = alignment(true_stills(num_prompts), captions)
    own = {"psnr_db": None, "psnr_by_prompt_db": (), "ssim": None}
    rows = [Row(name="the world's own stills", alignment=best, **own)]
    reference: Stills | None = None
    for setting in SETTINGS:
        stills = make_stills(pair, captions, setting)
        against = own if reference is None else fidelity(stills, reference)
        rows.append(Row(name=setting.name, alignment=alignment(stills, captions), **against))
        reference = stills if reference is None else reference
        print(rows[-1].name, flush=True)
    return rows


def fidelity(stills: Stills, reference: Stills) -> JsonObject:
    """The columns of a row that compare it with large-only, both ``[N, 64, 64, 3]``."""
    by_prompt = tuple(round(psnr_db(a[None], b[None]), 3) for a, b in zip(stills, reference, strict=True))
    return {
        "psnr_db": float(np.mean(by_prompt)),
        "psnr_by_prompt_db": by_prompt,
        "ssim": ssim(stills[:, None], reference[:, None]),
    }


def to_markdown(rows: Sequence[Row]) -> str:
    """The table of the docs page."""
    cells = ((row.name, shown(row.psnr_db), shown(row.ssim, ".3f"), f"{row.alignment:.3f}") for row in rows)
    return "\n".join(table(("setting", "PSNR to LLL, dB", "SSIM to LLL", "alignment"), cells)) + "\n"


def main() -> None:
    """Read the command line and write the card."""
    parser = argparse.ArgumentParser(prog="flowblend-unet-behaviour", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with large/ and small/")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="how many prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(load_unet_pair(arguments.weights), arguments.prompts)
    card = {"prompts": arguments.prompts, **CALL_DEFAULTS, "rows": [asdict(row) for row in rows]}
    (arguments.weights / "behaviour_card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
