"""The folder of a matrix run: ``matrix.json``, ``report.html`` and ``videos/``, each file whole or not there."""

from __future__ import annotations

from pathlib import Path

from flowblend_plugins.cli.output import write_json_atomically, write_text_atomically
from flowblend_plugins.video import write_mp4

from .bench import Videos
from .report import render_report
from .results import FILE_NAME, Matrix

NUM_SHOWN_PROMPTS = 4
"""Prompts whose videos are kept; the figures are over all of them."""

FRAMES_PER_SECOND = 8.0

REPORT_NAME = "report.html"


def write_videos(folder: Path, stem: str, videos: Videos) -> list[str]:
    """Write the videos of the first prompts; gives their paths relative to the folder."""
    (folder / "videos").mkdir(exist_ok=True)
    paths = []
    for number, video in enumerate(videos[:NUM_SHOWN_PROMPTS], start=1):
        name = f"videos/{stem}-{number}.mp4"
        write_mp4(video, folder / name, FRAMES_PER_SECOND)
        paths.append(name)
    return paths


def write_matrix(folder: Path, matrix: Matrix) -> None:
    """Write ``matrix.json``."""
    write_json_atomically(folder / FILE_NAME, matrix.to_dict())


def write_report(folder: Path, matrix: Matrix) -> Path:
    """Write ``report.html``, with the videos in it; gives its path."""
    path = folder / REPORT_NAME
    write_text_atomically(path, render_report(matrix, folder))
    return path
