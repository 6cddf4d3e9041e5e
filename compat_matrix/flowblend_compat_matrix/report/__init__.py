"""The report: one HTML file that holds everything it shows, and a table for the terminal."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from flowblend_plugins.errors import FlowBlendError

from ..results import Matrix
from . import figures
from .view import make_view

_TEMPLATES = Path(__file__).parent / "templates"
_MEDIA_TYPES = {".mp4": "video/mp4", ".png": "image/png"}


def render_report(matrix: Matrix, folder: Path) -> str:
    """The report as HTML: style, script and videos are inside, nothing is fetched.

    Args:
        matrix: the results.
        folder: where the videos that they name are.

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
    for name in ("figure", "times", "percent", "between", "plus_minus", "flops"):
        environment.filters[name] = getattr(figures, name)
    environment.filters["data_url"] = lambda name: _data_url(folder, name)
    script = (_TEMPLATES / "player.js").read_text(encoding="utf-8")
    # Only this script may run: were a prompt ever to get through unescaped, the browser would refuse it.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.jinja").render(
        matrix=matrix,
        run=matrix.run,
        pair=matrix.run.pairs[0],
        view=make_view(matrix),
        script=script,
        script_hash=f"sha256-{digest}",
        style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
    )


def _data_url(folder: Path, name: str) -> str:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path.suffix not in _MEDIA_TYPES:
        raise FlowBlendError(f"the results name {name!r} as a video, which is no mp4 or png in {folder}. It is not read.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FlowBlendError(
            f"{path} cannot be read ({error.strerror}), but the results name it. Run `flowblend matrix run` again."
        ) from error
    return f"data:{_MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(content).decode()}"
