"""The training card: what was trained, on what, for how long, and how well it does on videos that no training saw."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from flowblend_compat_matrix.measuring.metrics import psnr_db
from flowblend_compat_matrix.reference.classifier import AttributeClassifier
from flowblend_compat_matrix.reference.pair import load_classifier, load_pair
from flowblend_compat_matrix.reference.world import SHAPES, Scene, Video, render, sample_scene
from flowblend_plugins.types import JsonObject

from ...tables import table
from ..classifying import scene_labels

STAGES: dict[str, str] = {
    "codec": "the video codec (AutoencoderKLWan): single frames first, then whole videos, always fresh ones",
    "text": "the text encoder (UMT5EncoderModel): to say what a caption names; frozen afterwards",
    "classifier": "the attribute classifier: fresh videos, a part of them blurred, a part through the codec",
    "small": "the small denoiser (WanTransformer3DModel): flow matching on the encoded videos",
    "large": "the large denoiser (WanTransformer3DModel): flow matching on the encoded videos",
}
NUM_HELD_OUT = 256


def machine_kind() -> str:
    """Hardware that the training ran on, without naming the machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    tiles = " with AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{os.cpu_count()} CPU cores, {platform.machine()}{tiles}"


def classifier_accuracy(classifier: AttributeClassifier, videos: Video, scenes: list[Scene]) -> dict[str, float]:
    """Share of right answers by question; colour, texture and motion are asked of the shapes that are there."""
    predicted = classifier.predict(videos)
    labels = scene_labels(scenes)
    shares = {"background kind": (predicted["kind"].argmax(-1) == labels["kind"]).float().mean().item()}
    shares["shape present"] = ((predicted["present"] > 0) == (labels["present"] > 0)).float().mean().item()
    for name in ("colour", "texture", "motion"):
        valid = labels[name] != -100
        shares[name] = (predicted[name].argmax(-1) == labels[name])[valid].float().mean().item()
    return shares


def through_codec(pair_codec: AutoencoderKLWan, videos: Video) -> Video:
    """Encode and decode videos ``[N, F, H, W, 3]``."""
    parts = []
    with torch.no_grad():
        for part in np.array_split(videos, max(1, len(videos) // 16)):
            batch = torch.from_numpy(part).permute(0, 4, 1, 2, 3) * 2.0 - 1.0
            latents = pair_codec.encode(batch, return_dict=False)[0].mode()
            parts.append((pair_codec.decode(latents, return_dict=False)[0] * 0.5 + 0.5).permute(0, 2, 3, 4, 1).numpy())
    return np.concatenate(parts).astype(np.float32)


def held_out_quality(weights: Path) -> JsonObject:
    """Quality of codec and classifier on held-out world videos, and the classifier on what the codec makes of them."""
    scenes = [sample_scene(np.random.default_rng((3000, index))) for index in range(NUM_HELD_OUT)]
    videos = np.stack([render(scene) for scene in scenes])
    decoded = through_codec(load_pair(weights).pipeline.vae, videos)
    classifier = load_classifier(weights / "classifier")
    values = [psnr_db(one, other) for one, other in zip(decoded, videos, strict=True)]
    return {
        "num_videos": NUM_HELD_OUT,
        "codec_psnr_db": float(np.mean(values)),
        "codec_psnr_std_db": float(np.std(values)),
        "classifier_accuracy": classifier_accuracy(classifier, videos, scenes),
        "classifier_accuracy_through_codec": classifier_accuracy(classifier, decoded, scenes),
    }


def collect(out: Path, weights: Path) -> JsonObject:
    """Collect the card as data."""
    records = {}
    for name in STAGES:
        path = out / name / "record.json"
        if path.exists():
            records[name] = json.loads(path.read_text())
    shards = sorted((out / "data").glob("captions-*.json"))
    return {
        "machine": machine_kind(),
        "torch": torch.__version__,
        "num_encoded_videos": sum(len(json.loads(path.read_text())) for path in shards),
        "stages": records,
        "held_out": held_out_quality(weights),
    }


def to_markdown(card: JsonObject) -> str:
    """The card as a page."""
    lines = [
        "# Training card of the reference pair",
        "",
        "Written by `python -m flowblend_research.training.wan.train`; the loss curves are in `training_card.json`.",
        "",
        f"Trained on {card['machine']}, torch {card['torch']}. The data is made by `reference/world.py`: 9 frames "
        f"of 64x64, one or two of {len(SHAPES)} shapes over one of four backgrounds. The denoisers saw "
        f"{card['num_encoded_videos']} videos, encoded once, with four captions each; everything else saw "
        "fresh videos at every step.",
        "",
        *table(
            ("stage", "steps", "minutes", "loss at the end", "what"),
            (
                (name, str(one["steps"]), f"{one['seconds'] / 60.0:.1f}", f"{one['loss']:.4f}", STAGES[name])
                for name, one in card["stages"].items()
            ),
        ),
    ]
    earlier = {name: record["facts"].get("steps_on_first_world") for name, record in card["stages"].items()}
    if any(earlier.values()):
        started = ", ".join(f"{name} {steps}" for name, steps in earlier.items() if steps)
        lines += [
            "",
            "Codec, text encoder and classifier were trained on the first world (two or three objects, everything "
            f"continuous), of which this one is a part. The denoisers started from steps on it: {started}.",
        ]
    quality = card["held_out"]
    lines += [
        "",
        "Minutes are wall-clock time of a process or of two that train together, on cores that other work shared.",
        "",
        f"On {quality['num_videos']} held-out world videos the codec reaches {quality['codec_psnr_db']:.1f} ± "
        f"{quality['codec_psnr_std_db']:.1f} dB. The classifier is right on:",
        "",
    ]
    through = quality["classifier_accuracy_through_codec"]
    lines += table(
        ("question", "world videos", "the same through the codec"),
        (
            (name, f"{100 * share:.1f} %", f"{100 * through[name]:.1f} %")
            for name, share in quality["classifier_accuracy"].items()
        ),
    )
    return "\n".join([*lines, ""])


def write_card(out: Path, weights: Path) -> None:
    """Write ``training_card.json`` and ``training_card.md`` into ``weights``, which hold the exported pair."""
    card = collect(out, weights)
    (weights / "training_card.json").write_text(json.dumps(card, indent=1) + "\n")
    (weights / "training_card.md").write_text(to_markdown(card))
