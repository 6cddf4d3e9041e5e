"""Videos that the page holds: all of them, if they fit; otherwise those that a reader asks for first."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.types import JsonObject

from ..results.matrix_results import BaselineResult, CellResult, Matrix
from .charts import OFF_FRONT, pareto_front

_MEDIA_TYPES = {".mp4": "video/mp4", ".png": "image/png"}


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

    Then the schedules alone, cells that are broken or unexpected, those on the front of speed and fidelity, those that
    pass, and the rest; the faster first.
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
    front = {id(cell) for pair in matrix.run.pairs for cell in on_front(_of_pair(matrix, pair.name))}

    def rank(cell: CellResult) -> tuple[int, float]:
        kinds = (
            not cell.adapters,
            cell.observed == "broken" or cell.surprise is not None,
            id(cell) in front,
            cell.observed == "pass",
            True,
        )
        return kinds.index(True), -(cell.speedup_over_large or 0.0)

    return sorted(matrix.cells, key=rank)


def on_front(cells: list[CellResult]) -> list[CellResult]:
    """Cells that no other one beats in speed and fidelity at once, by rising speed; `OFF_FRONT` beat nobody."""
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
