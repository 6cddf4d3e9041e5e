"""Count what the house rules limit, and say where a rule is broken: ``make house``.

Everything is counted over the Python files that git tracks outside ``tests/`` and ``docs/``, research included.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES, MAX_WHEEL_LINES, MAX_ANY_LINES = 28_509, 24_000, 100
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
MIN_OPENING_WORDS = 5
_WHEEL = ("flowblend_plugins/", "adapters/flowblend_adapters/", "compat_matrix/flowblend_compat_matrix/")
_REASON = re.compile(r"#.*\blong because\b")


def sources() -> dict[str, str]:
    """Text of every Python file by its path from the root."""
    listed = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name and not name.startswith(("tests/", "docs/"))]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if (ROOT / name).is_file()}


def any_lines(files: dict[str, str]) -> list[str]:
    """Places of lines that name ``Any``."""
    return [
        f"{name}:{number}"
        for name, text in files.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(r"\bAny\b", line)
    ]


def long_functions(files: dict[str, str]) -> list[str]:
    """Functions over the limit whose first line gives no reason (``# long because ...``)."""
    found = []
    for name, text in files.items():
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES and not _REASON.search(lines[node.lineno - 1]):
                    found.append(f"{name}:{node.lineno} {node.name} ({length} lines)")
    return found


def bad_openings(files: dict[str, str]) -> list[str]:
    """Docstrings whose first sentence opens with a forbidden word, or is shorter than five words."""
    lines = (Path(__file__).with_name("forbidden_openings.txt")).read_text(encoding="utf-8").splitlines()
    forbidden = tuple(f"{line} " for line in lines if line and not line.startswith("#"))
    found = []
    for name, text in files.items():
        for where, docstring in _docstrings(ast.parse(text)):
            sentence = re.split(r"(?<=[.!?])\s", docstring.strip(), maxsplit=1)[0]
            if sentence.startswith(forbidden):
                found.append(f"{name}:{where} opens with {sentence.split()[0]!r}: {sentence}")
            elif len(sentence.split()) < MIN_OPENING_WORDS:
                found.append(f"{name}:{where} has fewer than {MIN_OPENING_WORDS} words: {sentence}")
    return found


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, "lineno", 1), docstring


def broken_rules() -> dict[str, tuple[str, list[str]]]:
    """Each rule with its count in words, and the places (or the excess) that break it."""
    files = sources()
    total = sum(len(text.splitlines()) for text in files.values())
    wheel = sum(len(text.splitlines()) for name, text in files.items() if name.startswith(_WHEEL))
    anys = any_lines(files)
    long_files = [f"{n} ({len(t.splitlines())})" for n, t in files.items() if len(t.splitlines()) > MAX_FILE_LINES]
    functions, openings = long_functions(files), bad_openings(files)
    return {
        "lines": (f"{total:,} of at most {MAX_LINES:,}", ["too many lines"] * (total > MAX_LINES)),
        "lines in the wheel": (f"{wheel:,} of at most {MAX_WHEEL_LINES:,}", ["too many"] * (wheel > MAX_WHEEL_LINES)),
        "lines with Any": (f"{len(anys)} of at most {MAX_ANY_LINES}", anys if len(anys) > MAX_ANY_LINES else []),
        f"files over {MAX_FILE_LINES} lines": (str(len(long_files)), long_files),
        f"functions over {MAX_FUNCTION_LINES} lines": (str(len(functions)), functions),
        "docstrings with a bad first sentence": (str(len(openings)), openings),
    }


def main() -> int:
    """Print the counts, and with ``-v`` every place that breaks a rule; 1 if there is one."""
    rules = broken_rules()
    for rule, (count, places) in rules.items():
        print(f"{rule + ':':<40} {count}")
        for place in places if "-v" in sys.argv else ():
            print(f"    {place}")
    return int(any(places for _, places in rules.values()))


if __name__ == "__main__":
    sys.exit(main())
