"""Names of models: hub ids, folders and files, told apart without loading anything."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import PairError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(.+\.safetensors)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(source: str | Path) -> bool:
    """Whether a text names a repository on the hub: two parts, no weights file, and nothing here of that path."""
    if isinstance(source, Path) or Path(source).expanduser().exists():
        return False
    return bool(_HUB_ID.fullmatch(source)) and Path(source).suffix not in (*PICKLE_SUFFIXES, ".safetensors")


def refuse_absent(*sources: str | Path | None) -> None:
    """Raise ``PairError`` for the first source that is neither here nor named as on the hub; ``None`` is passed over.

    Loads nothing, so that a misspelt path is told before torch is.
    """
    for source in sources:
        if source is None or Path(source).expanduser().exists() or is_hub_id(source):
            continue
        if isinstance(source, str) and HUB_FILE.fullmatch(source):
            continue
        raise PairError(
            f"there is no folder or file {str(source)!r} (looked at {Path(source).expanduser().absolute()}). Check the "
            "path, or give a hub id such as 'Wan-AI/Wan2.1-T2V-14B-Diffusers'."
        )
