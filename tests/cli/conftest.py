"""Variations of the saved pair, and a run on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def changed_pair(saved_pair: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the pair as two pipelines, the small one with other configs."""

    def make(component: str, **changes: Any) -> Path:
        root = tmp_path / "changed"
        shutil.copytree(saved_pair / "large", root)
        shutil.rmtree(root / "transformer")
        shutil.copytree(saved_pair / "small", root / "transformer")
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        config = root / component / name
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        return root

    return make
