"""The report: one HTML file that holds everything it shows, and the same as Markdown and in the terminal."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from ..results.matrix_results import Matrix
from .details import json_for_script, page_data
from .media import by_relevance, choose_media
from .view import LEGEND, VERDICT_MARKS, pair_views

MAX_BYTES = 15_000_000
"""Of the whole page: what a mail server takes, a phone opens, and a repository holds."""

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("player.js", "cell.js", "chart.js", "table.js", "page.js")
# No text and no JSON on the page holds a bare "<", so nothing from outside can be taken for it.
_MEDIA_GO_HERE = "<!--media-->"


def render_report(matrix: Matrix, folder: Path, max_bytes: int = MAX_BYTES) -> str:
    """The report as HTML: style, script and videos are inside, nothing is fetched.

    Args:
        matrix: the results.
        folder: where the videos that they name are.
        max_bytes: of the page in UTF-8. Videos that do not fit stay outside, the least relevant first
            (:func:`.media.by_relevance`), and the page says which; without any it may still be larger.

    Raises:
        FlowBlendError: a video is missing, or is named outside the folder.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = "\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    # Only this script may run: were a prompt ever to get through unescaped, the browser would refuse it.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.jinja").render(
        matrix=matrix,
        run=matrix.run,
        pairs=pair_views(matrix),
        marks=VERDICT_MARKS,
        legend=LEGEND,
        max_bytes=max_bytes,
        data=json_for_script(page_data(matrix)),
        media=_MEDIA_GO_HERE,
        script=script,
        script_hash=f"sha256-{digest}",
        style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
    )
    names = len(json_for_script(list(by_relevance(matrix))).encode())  # each is in the index or among those left out
    per_entry = 64  # around a file: quotes, its media type, its place
    room = max_bytes - len(page.encode()) - names - per_entry * (1 + sum(1 for _ in by_relevance(matrix)))
    return page.replace(_MEDIA_GO_HERE, json_for_script(choose_media(matrix, folder, room).to_dict()))
