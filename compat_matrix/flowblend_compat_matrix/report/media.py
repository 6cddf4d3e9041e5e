"""Videos that the page holds: all of them, if they fit; otherwise those that a reader asks for first."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.types import JsonObject

from ..results.matrix_results import BaselineResult, CellResult, Matrix
from .headline import headline

_MEDIA_TYPES = {".mp4": "video/mp4", ".png": "image/png"}
OFF_FRONT = ("broken", "inert")
"""Verdicts that beat nobody: an inert cell is its baseline again, faster by no more than the noise."""


@dataclass(frozen=True)
class Media:
    """Videos and stills by their names in the results.

    Attributes:
        contents: media type and base64 of every different file; equal ones are held once.
        index: name of a file to its place in ``contents``.
        left_out: names of those that did not fit, the most relevant first.
    """

    contents: list[tuple[str, str]]
    index: dict[str, int]
    left_out: list[str]

    def to_dict(self) -> JsonObject:
        """Values as the page's script reads them."""
        return {"contents": self.contents, "index": self.index, "leftOut": self.left_out}


def choose_media(matrix: Matrix, folder: Path, num_bytes: int) -> Media:
    """Take videos in the order of :func:`by_relevance`, each that still fits.

    Args:
        matrix: the results.
        folder: where the videos that they name are.
        num_bytes: what they may take on the page, encoded.

    Raises:
        FlowBlendError: a video is missing, or is named outside the folder.
    """
    contents: list[tuple[str, str]] = []
    index: dict[str, int] = {}
    places: dict[bytes, int] = {}
    left_out: list[str] = []
    for name in dict.fromkeys(by_relevance(matrix)):
        path = _inside(folder, name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise FlowBlendError(
                f"{path} cannot be read ({error.strerror or error}), but the results name it. Run `flowblend matrix "
                "run` again."
            ) from error
        if content not in places:
            encoded = 4 * math.ceil(len(content) / 3)
            if encoded > num_bytes:
                left_out.append(name)
                continue
            num_bytes -= encoded
            places[content] = len(contents)
            contents.append((_MEDIA_TYPES[path.suffix], base64.b64encode(content).decode()))
        index[name] = places[content]
    return Media(contents, index, left_out)


def by_relevance(matrix: Matrix) -> Iterator[str]:
    """Names of all videos: of the first prompt before the second; of each prompt first large-only and small-only.

    Then the cells of the headlines, the schedules alone, cells that are broken or unexpected, those on the front of
    speed and fidelity, those that pass, and the rest; the faster first.
    """
    cells = _cells_by_relevance(matrix)
    shown = [one.videos for one in (*_baselines(matrix), *cells)]
    for prompt in range(max(map(len, shown), default=0)):
        for videos in shown:
            if prompt < len(videos):
                yield videos[prompt]


def _baselines(matrix: Matrix) -> Iterator[BaselineResult]:
    for pair in matrix.run.pairs:
        yield from (pair.large_only, pair.small_only)


def _cells_by_relevance(matrix: Matrix) -> list[CellResult]:
    of_pairs = [(pair, _of_pair(matrix, pair.name)) for pair in matrix.run.pairs]
    best = {id(headline(pair, cells).best) for pair, cells in of_pairs}
    front = {id(cell) for pair, cells in of_pairs for cell in on_front(cells, pair.front)}

    def rank(cell: CellResult) -> tuple[int, float]:
        kinds = (
            id(cell) in best,
            not cell.adapters,
            cell.observed == "broken" or cell.surprise is not None,
            id(cell) in front,
            cell.observed == "pass",
            True,
        )
        return kinds.index(True), -(cell.speedup_over_large or 0.0)

    return sorted(matrix.cells, key=rank)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the points that no other reaches in both coordinates (larger is better), by falling first coordinate."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def on_front(cells: list[CellResult], confirmed: Sequence[str] = ()) -> list[CellResult]:
    """Cells that no other one beats in speed and fidelity at once, by rising speed; `OFF_FRONT` beat nobody.

    Args:
        cells: of one pair.
        confirmed: ids of the front that was confirmed on other prompts, which is then the front.
    """
    if confirmed:
        return sorted((c for c in cells if c.id in confirmed), key=lambda c: c.speedup_over_large or 0.0)
    points = [(speed_and_fidelity(cell), cell) for cell in cells if cell.observed not in OFF_FRONT]
    known = [(point, cell) for point, cell in points if point is not None]
    best = set(pareto_front(point for point, _ in known))
    first = {point: cell for point, cell in reversed(known) if point in best}
    return [first[point] for point in sorted(first)]


def speed_and_fidelity(cell: CellResult) -> tuple[float, float] | None:
    """Speed-up over large-only and PSNR to it; infinite where the cell is bit for bit large-only."""
    fidelity = math.inf if cell.is_identical_to_large else cell.psnr_db
    if cell.speedup_over_large is None or fidelity is None:
        return None
    return cell.speedup_over_large, fidelity


def _of_pair(matrix: Matrix, name: str) -> list[CellResult]:
    return [cell for cell in matrix.cells if cell.pair == name]


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path.suffix not in _MEDIA_TYPES:
        raise FlowBlendError(
            f"the results name {name!r} as a video, which is no mp4 or png in {folder}. It is not read."
        )
    return path
