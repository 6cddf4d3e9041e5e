"""The training card: what was trained, on what, for how long, how well."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

_STAGES = ("codec", "text", "classifier", "small", "large")


def machine_kind(device: torch.device) -> str:
    """What the training ran on, without naming the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    tiles = " with AMX" if torch.cpu._is_amx_tile_supported() else ""  # noqa: SLF001
    return f"{os.cpu_count()} CPU cores, {platform.machine()}{tiles}"


def collect(out: Path, device: torch.device) -> dict[str, Any]:
    """The card as data."""
    records = {}
    for name in _STAGES:
        path = out / name / "record.json"
        if path.exists():
            records[name] = json.loads(path.read_text())
    data = sorted((out / "data").glob("captions-*.json"))
    num_videos = sum(len(json.loads(path.read_text())) for path in data)
    return {
        "machine": machine_kind(device),
        "torch": torch.__version__,
        "num_encoded_videos": num_videos,
        "stages": records,
    }


def write_card(out: Path, weights: Path, device: torch.device) -> None:
    """Write ``training_card.json`` and ``training_card.md`` into ``weights``."""
    card = collect(out, device)
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "training_card.json").write_text(json.dumps(card, indent=1) + "\n")
