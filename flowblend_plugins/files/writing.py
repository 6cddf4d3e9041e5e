"""Writing results so that a reader never finds half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import OutputError


def prepare_output_folder(path: Path) -> Path:
    """Create the folder and make sure that it can be written, before hours of work rather than after.

    Raises:
        OutputError: it cannot be created or written.
    """
    probe = path / f".flowblend-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"--out {path}: nothing can be written there ({error.strerror or error}). Give another folder."
        ) from error
    return path


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def write_json_atomically(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all. Raises ``OutputError`` if it cannot be written."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
