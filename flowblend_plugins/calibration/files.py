"""Reading back what a calibration wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ScheduleError


def read_json(path: str | Path, kind: str, api_version: int, command: str) -> Mapping[str, Any]:
    """A JSON object of this kind and version.

    Raises:
        ScheduleError: with the file, what it is instead, and the command that writes one.
    """
    remedy = f"Write one with `flowblend calibrate {command}`."
    try:
        entry = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ScheduleError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise ScheduleError(f"{path} is no JSON file. {remedy}") from error
    if not isinstance(entry, dict) or entry.get("kind") != kind:
        found = entry.get("kind") if isinstance(entry, dict) else type(entry).__name__
        raise ScheduleError(f"{path} holds {found!r}, but {kind!r} is needed. {remedy}")
    if entry.get("api_version") != api_version:
        raise ScheduleError(
            f"{path} is of version {entry.get('api_version')!r}, but this package reads version {api_version}. {remedy}"
        )
    return entry
