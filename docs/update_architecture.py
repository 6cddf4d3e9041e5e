"""Draw the layers of imports into docs/architecture.md, from the contracts in pyproject.toml and the imports.

Run it after a change of layers: ``python docs/update_architecture.py``. A test compares the page with what it writes.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
_PLACES = {
    "flowblend_plugins": ROOT / "flowblend_plugins",
    "flowblend_adapters": ROOT / "adapters" / "flowblend_adapters",
    "flowblend_compat_matrix": ROOT / "compat_matrix" / "flowblend_compat_matrix",
}


def layers() -> dict[str, list[list[str]]]:
    """Rooms of each package from the bottom to the top, those of one layer together, as the contracts name them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    return {
        contract["containers"][0]: [re.split(r" [:|] ", layer) for layer in reversed(contract["layers"])]
        for contract in contracts
        if "containers" in contract
    }


def drawing(package: str, rooms: list[list[str]]) -> str:
    """One line for each room, with what it is and the rooms of its package that it imports."""
    lines = ["```text"]
    for layer in rooms:
        lines += [f"{room:<20} {_first_sentence(package, room)}\n{_imports_line(package, room)}" for room in layer]
        lines.append("")
    return "\n".join([*lines[:-1], "```"])


def page_with_drawings(page: str) -> str:
    """The page with every drawing made anew."""
    for package, rooms in layers().items():
        marked = re.compile(rf"(<!-- layers of {package} -->\n).*?(\n<!-- end -->)", re.S)
        drawn = drawing(package, rooms)
        page = marked.sub(lambda match, drawn=drawn: match[1] + drawn + match[2], page)
    return page


def _files(package: str, room: str) -> list[Path]:
    folder = _PLACES[package] / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def _first_sentence(package: str, room: str) -> str:
    docstring = ast.get_docstring(ast.parse(_files(package, room)[0].read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.!?])\s", docstring, maxsplit=1)[0].replace("\n", " ")


def _imports_line(package: str, room: str) -> str:
    found = sorted({name for file in _files(package, room) for name in _imported(package, file)} - {room})
    return f"{'':<20}   imports {', '.join(found) if found else 'nothing of this package'}"


def _imported(package: str, file: Path) -> Iterator[str]:
    """Rooms of the package that a file imports, at its top or where they are needed."""
    where = [package, *file.relative_to(_PLACES[package]).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = where[: len(where) - node.level + 1] if node.level else []
            path = [*above, *(node.module or "").split(".")] if node.module else above
            names = [path] if len(path) > 1 else [[*path, alias.name] for alias in node.names]
            for name in names:
                is_room = len(name) > 1 and (
                    (_PLACES[package] / name[1]).is_dir() or (_PLACES[package] / f"{name[1]}.py").is_file()
                )
                if name[0] == package and is_room:
                    yield name[1]


if __name__ == "__main__":
    PAGE.write_text(page_with_drawings(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
