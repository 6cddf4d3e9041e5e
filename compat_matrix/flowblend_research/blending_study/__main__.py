"""Study of correction, guided refresh, forecasts and branch routing: ``docs/blending_measured.md``.

``python -m flowblend_research.blending_study.__main__ [--prompts N] [--threads N] [--out FILE]``

Every row makes the same prompts from the same seeds, one video at a time (an adaptive method decides for each by
itself), and is compared with the large denoiser alone. Cost is counted in FLOPs, not timed; docs/frontier.md has times.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import flowblend_plugins
from flowblend_compat_matrix.measuring.metrics import frechet_distance, psnr_db
from flowblend_compat_matrix.reference.classifier import AttributeClassifier
from flowblend_compat_matrix.reference.pair import (
    WEIGHTS,
    ReferencePair,
    evaluation_captions,
    held_out_videos,
    load_classifier,
    load_pair,
)
from flowblend_compat_matrix.reference.world import Caption
from flowblend_compat_matrix.tune.space import schedule_text

from ..tables import table
from ..training.wan.behaviour import STEPS, generate
from ..training.wan.behaviour_page import NUM_WORLD_VIDEOS
from .velocity_predictors import compare_predictors
from .velocity_predictors import to_markdown as predictors_to_markdown

NUM_PROMPTS = 32
EARLY_STEPS = 6
"""Of the comparison of placements: enough for what is shown to be decided."""

CORRECTIONS = (
    "",
    "corrected(damping=0.0)",
    "corrected(damping=0.5)",
    "corrected",
    "corrected(damping=2.0)",
    "corrected(extrapolate=0.5)",
)
CORRECTED_SCHEDULES = ("L:8,S:8,L:4", "L:8,S:12", "L:4,S:12,L:4")
REFRESH_THRESHOLDS = (0.1, 0.2, 0.3)
TEACACHE_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
WAYS_TO_FORECAST = ("trend=0.0", "trend=1.0", "moments='reference'")
FORECASTS = (
    *(
        (f"L:{early},S:{STEPS - early}", f"forecast(recall_every={every}, {way})")
        for early, every in ((6, 2), (8, 3), (6, 3), (5, 4))
        for way in WAYS_TO_FORECAST
    ),
    *(
        (schedule, f"forecast(recall_every=0, {way})")
        for schedule in (
            "L:8,S:8,L:4",
            "L:4,S:1,L:1,S:2,L:1,S:2,L:1,S:5,L:1,S:2",
            "L:4,S:2,L:1,S:2,L:1,S:6,L:1,S:3",
            "L:4,S:2,L:1,S:4,L:1,S:8",
            "L:3,S:2,L:1,S:4,L:1,S:9",
        )
        for way in WAYS_TO_FORECAST
    ),
)
NUM_MORE_PROMPTS = 16
BRANCHES = (
    ("branch_routing(first_step=8)",),
    ("branch_routing(first_step=8)", "corrected"),
    ("branch_routing(first_step=4, refresh_every=3)", "corrected(damping=0.5)"),
)


@dataclass(frozen=True)
class Row:
    """One stack on one schedule."""

    schedule: str
    adapters: tuple[str, ...]
    num_large_steps: float
    flops_fraction: float
    psnr_db: float
    psnr_std_db: float
    alignment: float
    frechet_distance: float


class Study:
    """The pair, the prompts and large-only's videos.

    Args:
        pair, classifier: loaded.
        num_prompts: held-out captions.
    """

    def __init__(self, pair: ReferencePair, classifier: AttributeClassifier, num_prompts: int) -> None:
        self._pair, self._classifier = pair, classifier
        self._captions = evaluation_captions(num_prompts)
        self._world = classifier.features(held_out_videos(NUM_WORLD_VIDEOS))
        self._large = np.concatenate([self._one(number, caption) for number, caption in enumerate(self._captions)])

    def measure(self, schedule: str, *adapters: str) -> Row:
        """All prompts under one stack."""
        videos, flops, steps = [], [], []
        pair = self._pair
        with flowblend_plugins.enable(pair.pipeline, pair.small, schedule, adapters=list(adapters)) as blend:
            for number, caption in enumerate(self._captions):
                videos.append(self._one(number, caption))
                flops.append(blend.trace.flops().full_fraction_of_large)
                calls = blend.trace.generations[-1].calls
                steps.append(len({c.step.step_index for c in calls if c.step.denoiser == "L" and c.has_run}))
        made = np.concatenate(videos)
        psnrs = [min(99.0, psnr_db(video, wanted)) for video, wanted in zip(made, self._large, strict=True)]
        return Row(
            schedule,
            adapters,
            float(np.mean(steps)),
            float(np.mean(flops)),
            float(np.mean(psnrs)),
            float(np.std(psnrs)),
            self._classifier.alignment(made, [caption.attributes for caption in self._captions]),
            frechet_distance(self._classifier.features(made), self._world),
        )

    def _one(self, number: int, caption: Caption) -> NDArray[np.float32]:
        return generate(self._pair, [caption], seed=number)


def corrections(study: Study) -> Iterator[Row]:
    """Plain blending and every form of correction at the same boundaries."""
    for schedule in CORRECTED_SCHEDULES:
        for adapter in CORRECTIONS:
            yield study.measure(schedule, *filter(None, [adapter]))


def placements(study: Study) -> Iterator[Row]:
    """Large steps in the number that guided refresh takes, placed by it, as LSL, evenly, and where a cache computes."""
    tried = [study.measure("LLL", f"teacache(threshold={threshold})") for threshold in TEACACHE_THRESHOLDS]
    for threshold in REFRESH_THRESHOLDS:
        schedule = f"L:{EARLY_STEPS},S:{STEPS - EARLY_STEPS}"
        found = study.measure(schedule, f"guided_refresh(threshold={threshold})")
        yield found
        num = max(1, round(found.num_large_steps) - EARLY_STEPS)
        yield study.measure(f"L:{EARLY_STEPS},S:{STEPS - EARLY_STEPS - num},L:{num}", "corrected")
        yield study.measure(evenly(STEPS, EARLY_STEPS, num), "corrected")
        yield min(tried, key=lambda row: abs(row.num_large_steps - found.num_large_steps))


def forecasts(study: Study) -> Iterator[Row]:
    """No denoiser in the small steps but where the large one is recalled."""
    for schedule, adapter in FORECASTS:
        yield study.measure(schedule, adapter)


def branches(study: Study) -> Iterator[Row]:
    """The small denoiser for the unconditional branch of large-only."""
    for stack in BRANCHES:
        yield study.measure("LLL", *stack)


def evenly(num_steps: int, early: int, num_large: int) -> str:
    """A schedule with ``num_large`` single large steps, evenly spaced over what comes after the early stage."""
    rest = num_steps - early
    places = {early + (number + 1) * rest // (num_large + 1) for number in range(num_large)}
    return schedule_text("".join("L" if index < early or index in places else "S" for index in range(num_steps)))


def to_markdown(sections: Mapping[str, Sequence[Row]], num_prompts: int, more: Sequence[str] = ()) -> str:
    """The page: a table for each section, and ``more`` lines."""
    lines = [
        "# Blending: what was measured",
        "",
        "Made by `python -m flowblend_research.blending_study.__main__`; the methods are in [Blending](blending.md). "
        f"The embedded reference pair, {STEPS} UniPC steps, guidance 8, {num_prompts} held-out prompts, one video at a "
        "time.",
        "PSNR is to large-only at the same seeds, ± over the prompts; FLOPs (attention included) are of large-only's, "
        "with every extra forward in them; large steps are those in which the large denoiser was computed for any "
        "branch, the mean over the prompts.",
        "",
    ]
    heads = ("schedule", "adapters", "large steps", "FLOPs", "PSNR", "captions right", "Frechet distance")
    for title, rows in sections.items():
        lines += [f"## {title}", "", *table(heads, map(_cells, rows)), ""]
    return "\n".join([*lines, *more])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"`{row.schedule}`",
        " + ".join(f"`{adapter}`" for adapter in row.adapters) or "plain",
        f"{row.num_large_steps:.1f}",
        f"{row.flops_fraction:.3f}",
        f"{row.psnr_db:.1f} ± {row.psnr_std_db:.1f} dB",
        f"{row.alignment:.1%}",
        f"{row.frechet_distance:.2f}",
    )


SECTIONS = {
    "Correction": corrections,
    "Where the large denoiser is called again": placements,
    "Forecast": forecasts,
    "The small denoiser for the unconditional branch": branches,
}


def main() -> None:
    """Read the command line and run the study."""
    parser = argparse.ArgumentParser(prog="flowblend-blending-study", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="held-out prompts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/blending_measured.md"), help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pair = load_pair()
    study = Study(pair, load_classifier(WEIGHTS / "classifier"), arguments.prompts)
    sections: dict[str, list[Row]] = {}
    for title, make in SECTIONS.items():
        sections[title] = []
        for row in make(study):
            sections[title].append(row)
            print(f"{row.schedule} {' + '.join(row.adapters)}: {row.psnr_db:.1f} dB, FLOPs {row.flops_fraction:.3f}")
    captions = evaluation_captions(arguments.prompts + NUM_MORE_PROMPTS)[arguments.prompts :]
    guesses = predictors_to_markdown(compare_predictors(pair, captions), NUM_MORE_PROMPTS)
    arguments.out.write_text(to_markdown(sections, arguments.prompts, guesses))


if __name__ == "__main__":
    main()
