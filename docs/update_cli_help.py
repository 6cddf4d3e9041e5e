"""Write the real help of every command into docs/cli.md (a test compares them)."""

import os

os.environ |= {"TERMINAL_WIDTH": "100", "COLUMNS": "100", "NO_COLOR": "1"}

import contextlib
import io
import re
from pathlib import Path

from flowblend_plugins.cli import run

PAGE = Path(__file__).with_name("cli.md")


def real_help(match: re.Match[str]) -> str:
    command = match.group(1)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run([*command.split(), "--help"])
    text = "\n".join(line.rstrip() for line in printed.getvalue().splitlines() if line.strip())
    return f"```text\n$ flowblend {command}{' ' if command else ''}--help\n{text}\n```"


page = PAGE.read_text()
PAGE.write_text(re.sub(r"```text\n\$ flowblend ?(.*?) ?--help\n.*?```", real_help, page, flags=re.S))
