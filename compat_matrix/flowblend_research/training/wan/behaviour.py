"""Measure whether the pair behaves like the published models, and write the behaviour card.

``python -m flowblend_research.training.wan.behaviour [--weights DIR] [--prompts N]``

Every schedule makes the same prompts from the same seeds, at the pair's own operating point, and is compared with
the large denoiser alone (LLL). The figures stand beside those measured on the published WAN clips.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray

import flowblend_plugins
from flowblend_compat_matrix.measuring.metrics import flicker, frechet_distance, high_frequency_error, psnr_db, ssim
from flowblend_compat_matrix.reference.classifier import AttributeClassifier
from flowblend_compat_matrix.reference.pair import (
    CALL_DEFAULTS,
    WEIGHTS,
    ReferencePair,
    evaluation_captions,
    held_out_videos,
    load_classifier,
    load_pair,
)
from flowblend_compat_matrix.reference.world import Caption
from flowblend_plugins.types import JsonObject

from .behaviour_page import (
    EARLY,
    HALF,
    LATE,
    NUM_WORLD_VIDEOS,
    PUBLISHED,
    REUSE,
    TEACACHE,
    WANS_SETTINGS,
    WANS_SHIFT,
    Check,
    Row,
    check,
    to_markdown,
)
from .card import through_codec
from .denoisers import SAMPLING_SHIFT, forward_flops

Videos = NDArray[np.float32]

NUM_PROMPTS = 64
BATCH = 16
STEPS: int = CALL_DEFAULTS["num_inference_steps"]
REUSE_EVERY = 3


def generate(pair: ReferencePair, captions: list[Caption], seed: int = 0, **call: object) -> Videos:
    """One video for each caption, ``[N, F, H, W, 3]``; video ``i`` starts from the noise of seed ``seed + i``.

    The pipeline is called as it stands, so whatever is enabled on it takes part. ``call`` goes over the pair's
    defaults; ``None`` leaves an argument out, for an adapter that sets it.
    """
    pair.pipeline.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, len(captions), BATCH):
        texts = [item.text for item in captions[start : start + BATCH]]
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(texts))]
        given = {name: value for name, value in {**CALL_DEFAULTS, **call}.items() if value is not None}
        arguments = {**given, "output_type": "np", "return_dict": False}
        frames = pair.pipeline(texts, generator=generators, **arguments)[0]
        parts.append(np.asarray(frames, dtype=np.float32))
    return np.concatenate(parts)


def blended(pair: ReferencePair, captions: list[Caption], schedule: str, **call: int) -> tuple[Videos, int, int]:
    """One video for each caption under a schedule, and how many steps each denoiser answers."""
    with flowblend_plugins.enable(pair.pipeline, small=pair.small, schedule=schedule, early=EARLY, late=LATE) as blend:
        videos = generate(pair, captions, **call)
        letters = [one.denoiser for one in blend.schedule.assignments(call.get("num_inference_steps", STEPS))]
    return videos, letters.count("L"), letters.count("S")


@contextlib.contextmanager
def reusing_velocities(pair: ReferencePair) -> Iterator[None]:
    """Answer every third step with the velocities of the step before: what a cache at 1.5x does at its simplest.

    Two calls a step, so each guidance branch has a velocity of its own.
    """
    denoiser = pair.pipeline.transformer
    forward, calls, kept = denoiser.forward, 0, {}

    def reuse(*args: object, **kwargs: object) -> object:
        nonlocal calls
        step, branch = divmod(calls % (2 * STEPS), 2)
        calls += 1
        if step % REUSE_EVERY != REUSE_EVERY - 1:
            kept[branch] = forward(*args, **kwargs)
        return kept[branch]

    denoiser.forward = reuse
    try:
        yield
    finally:
        del denoiser.forward


def _reused(pair: ReferencePair, captions: list[Caption]) -> tuple[Videos, int, int]:
    with reusing_velocities(pair):
        return generate(pair, captions), STEPS - STEPS // REUSE_EVERY, 0


def _with_teacache(pair: ReferencePair, captions: list[Caption]) -> tuple[Videos, int, int]:
    with flowblend_plugins.enable(pair.pipeline, schedule="LLL", adapters=["teacache"]) as blend:
        videos = generate(pair, captions)
        computed = blend.trace.generations[-1].num_forwards("L", "compute")
    return videos, computed // 2, 0


def _measure(
    name: str,
    videos: Videos,
    reference: Videos | None,
    captions: list[Caption],
    classifier: AttributeClassifier,
    world_features: NDArray[np.float64],
    steps: tuple[int, int],
    seconds: float,
) -> Row:
    psnrs = ssims = details = None
    if reference is not None:
        both = list(zip(videos, reference, strict=True))
        psnrs = [psnr_db(one, other) for one, other in both]
        ssims = [ssim(one, other) for one, other in both]
        details = high_frequency_error(videos, reference)
    return Row(
        name=name,
        num_large_steps=steps[0],
        num_small_steps=steps[1],
        psnr_db=None if psnrs is None else float(np.mean(psnrs)),
        psnr_std_db=None if psnrs is None else float(np.std(psnrs)),
        psnr_by_prompt_db=None if psnrs is None else [round(value, 3) for value in psnrs],
        ssim=None if ssims is None else float(np.mean(ssims)),
        ssim_std=None if ssims is None else float(np.std(ssims)),
        alignment=classifier.alignment(videos, [item.attributes for item in captions]),
        frechet_distance=frechet_distance(classifier.features(videos), world_features),
        high_frequency_error=0.0 if details is None else details,
        flicker=flicker(videos),
        seconds=seconds,
    )


class _Rows:
    """Rows of the card, each compared with a row that was made before it."""

    def __init__(self, classifier: AttributeClassifier, captions: list[Caption], report: Callable[[str], None]) -> None:
        self.rows: list[Row] = []
        self._classifier, self._captions, self._report = classifier, captions, report
        self._world_features = classifier.features(held_out_videos(NUM_WORLD_VIDEOS))
        self._made: dict[str, Videos] = {}

    def add(self, name: str, against: str | None, make: Callable[[], tuple[Videos, int, int]]) -> None:
        started = time.monotonic()
        videos, num_large, num_small = make()
        seconds = time.monotonic() - started
        self._made[name] = videos
        reference = None if against is None else self._made[against]
        steps = (num_large, num_small)
        row = _measure(name, videos, reference, self._captions, self._classifier, self._world_features, steps, seconds)
        self.rows.append(row)
        self._report(f"{name}: {seconds:.0f} s, PSNR {row.psnr_db}, alignment {row.alignment:.3f}")


def measure(
    pair: ReferencePair,
    classifier: AttributeClassifier,
    num_prompts: int = NUM_PROMPTS,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """All rows at the pair's operating point."""
    captions = evaluation_captions(num_prompts)
    rows = _Rows(classifier, captions, report)
    add = rows.add
    add("LLL", None, lambda: (generate(pair, captions), STEPS, 0))
    for schedule in ("SSS", "SLL", "LSS", "LSL", "SSL"):
        add(schedule, "LLL", lambda schedule=schedule: blended(pair, captions, schedule))

    def with_half() -> tuple[Videos, int, int]:
        return generate(pair, captions, num_inference_steps=STEPS // 2), STEPS // 2, 0

    add(HALF, "LLL", with_half)
    add(REUSE, "LLL", lambda: _reused(pair, captions))
    add(TEACACHE, "LLL", lambda: _with_teacache(pair, captions))
    unipc = pair.pipeline.scheduler
    pair.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT)
    try:
        add("Euler", None, lambda: (generate(pair, captions), STEPS, 0))
        add(f"Euler, {HALF}", "Euler", with_half)
    finally:
        pair.pipeline.scheduler = unipc
    return rows.rows


def measure_at_wans_settings(
    pair: ReferencePair,
    classifier: AttributeClassifier,
    num_prompts: int,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """The schedules and half the steps at `WANS_SETTINGS` and `WANS_SHIFT`, which WAN 2.1 is used with."""
    captions = evaluation_captions(num_prompts)
    rows = _Rows(classifier, captions, report)
    steps: int = WANS_SETTINGS["num_inference_steps"]
    own = pair.pipeline.scheduler
    pair.pipeline.scheduler = type(own).from_config(own.config, flow_shift=WANS_SHIFT)
    half = WANS_SETTINGS | {"num_inference_steps": steps // 2}
    try:
        rows.add("LLL", None, lambda: (generate(pair, captions, **WANS_SETTINGS), steps, 0))
        for schedule in ("SSS", "SLL", "LSS", "LSL", "SSL"):
            rows.add(schedule, "LLL", lambda schedule=schedule: blended(pair, captions, schedule, **WANS_SETTINGS))
        rows.add(HALF, "LLL", lambda: (generate(pair, captions, **half), steps // 2, 0))
    finally:
        pair.pipeline.scheduler = own
    return rows.rows


def world_figures(pair: ReferencePair, classifier: AttributeClassifier, num_videos: int) -> dict[str, float]:
    """Figures of real world videos, through the classifier and the codec: the ceiling of every row."""
    captions = [item.attributes for item in evaluation_captions(num_videos)]
    videos = held_out_videos(num_videos, seed=1000)  # the very scenes of the evaluation captions
    features = classifier.features(held_out_videos(NUM_WORLD_VIDEOS))
    through = through_codec(pair.pipeline.vae, videos)
    return {
        "alignment": classifier.alignment(videos, captions),
        "frechet_distance": frechet_distance(classifier.features(videos), features),
        "flicker": flicker(videos),
        "codec_psnr_db": psnr_db(through, videos),
        "codec_alignment": classifier.alignment(through, captions),
        "codec_frechet_distance": frechet_distance(classifier.features(through), features),
        "codec_flicker": flicker(through),
    }


def write_behaviour_card(weights: Path = WEIGHTS, num_prompts: int = NUM_PROMPTS) -> list[Check]:
    """Measure the pair in ``weights`` and write ``behaviour_card.json`` and ``.md`` beside it."""
    pair = load_pair(weights)
    classifier = load_classifier(weights / "classifier")
    large_flops = forward_flops(dict(pair.pipeline.transformer.config))
    rows = measure(pair, classifier, num_prompts)
    checks = check(rows)
    wans = measure_at_wans_settings(pair, classifier, num_prompts // 2)
    card: JsonObject = {
        "num_prompts": num_prompts,
        "operating_point": {
            **CALL_DEFAULTS,
            "shift": SAMPLING_SHIFT,
            "sampler": type(pair.pipeline.scheduler).__name__,
        },
        "early": EARLY,
        "late": LATE,
        "small_flops_fraction": forward_flops(dict(pair.small.config)) / large_flops,
        "large_forward_flops": large_flops,
        "world": world_figures(pair, classifier, num_prompts),
        "rows": [asdict(row) for row in rows],
        "rows_at_wans_settings": [asdict(row) for row in wans],
        "published": PUBLISHED,
        "checks": [asdict(item) for item in checks],
    }
    (weights / "behaviour_card.json").write_text(json.dumps(card, indent=1) + "\n")
    (weights / "behaviour_card.md").write_text(to_markdown(card, rows, wans, checks))
    return checks


def main() -> None:
    """Read the command line and write the card."""
    parser = argparse.ArgumentParser(prog="flowblend-reference-behaviour", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the pair to measure (default: the one shipped)")
    parser.add_argument(
        "--prompts", type=int, default=NUM_PROMPTS, help="how many held-out prompts (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for item in write_behaviour_card(arguments.weights, arguments.prompts):
        print(f"{'holds' if item.holds else 'MISSES'}: {item.aim} (found {item.found})")


if __name__ == "__main__":
    main()
