"""The folder of a matrix run: ``matrix.json``, ``report.html`` and ``videos/``, each file whole or not there."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flowblend_plugins.errors import OutputError
from flowblend_plugins.files.video import write_mp4, write_png
from flowblend_plugins.files.writing import write_json_atomically, write_text_atomically

from ..measuring.bench import Videos
from ..report import MAX_BYTES, render_report
from ..report.markdown import render_markdown
from ..results.matrix_results import FILE_NAME, Matrix

FRAMES_PER_SECOND = 8.0

REPORT_NAME = "report.html"
MARKDOWN_NAME = "report.md"
COMPACT_NAME = "matrix.compact.json"


def encode_videos(videos: Videos, title: str, as_stills: bool, min_side: int = 256) -> dict[str, bytes]:
    """Videos (or stills, of one frame each) as files of the folder: relative path to content.

    Those with a side under ``min_side`` pixels are enlarged, see :func:`flowblend_plugins.files.video.write_mp4`.
    """
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", title).strip("-")
    files = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, video in enumerate(videos, start=1):
            path = Path(scratch, f"{stem}-{number}.{'png' if as_stills else 'mp4'}")
            if as_stills:
                write_png(video[0], path, min_side)
            else:
                write_mp4(video, path, FRAMES_PER_SECOND, min_side)
            files[f"videos/{path.name}"] = path.read_bytes()
    return files


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write what a worker made into the folder; each file is whole or not there."""
    (folder / "videos").mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / "videos" / Path(name).name
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
        finally:
            partial.unlink(missing_ok=True)


def write_matrix(folder: Path, matrix: Matrix) -> None:
    """Write ``matrix.json``, whole or not at all."""
    write_json_atomically(folder / FILE_NAME, matrix.to_dict())


def write_report(folder: Path, matrix: Matrix, max_bytes: int = MAX_BYTES) -> Path:
    """Write ``report.html``, with the videos in it, as far as they fit; gives its path."""
    path = folder / REPORT_NAME
    write_text_atomically(path, render_report(matrix, folder, max_bytes))
    return path


def write_markdown(folder: Path, matrix: Matrix) -> Path:
    """Write ``report.md``, the same as tables; gives its path."""
    path = folder / MARKDOWN_NAME
    write_text_atomically(path, render_markdown(matrix))
    return path


def write_compact(folder: Path, matrix: Matrix) -> Path:
    """Write ``matrix.compact.json``, every figure of every cell in a file to be committed; gives its path."""
    path = folder / COMPACT_NAME
    write_text_atomically(path, matrix.to_compact_json())
    return path
