"""The ``flowblend`` command line, whose commands come from plugins through ``flowblend_register_commands``.

Exit codes: 0 done; 1 something found or made on the way is wrong; 2 the command line itself is; 3 a
matrix was measured and does not pass; 130 interrupted.
Set ``FLOWBLEND_TRACEBACK=1`` to see where an error was raised.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from ..errors import (
    AdapterError,
    FlowBlendError,
    PluginError,
    ScheduleError,
    StackError,
    UsageError,
    is_out_of_memory,
    notes_of,
)
from ..extras import missing_module

_INTERRUPTED = 130
_USAGE_ERRORS = (UsageError, ScheduleError, AdapterError, StackError)
_NEED_NO_PLUGINS = ("doctor", "--version")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: instead of the process's own.
    """
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; errors are one line on standard error."""
    try:
        code = _run_command(list(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _say(f"interrupted; nothing half-written was left behind. {notes_of(error)}")
        return _INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as in `flowblend plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 1
    except Exception as error:
        if os.environ.get("FLOWBLEND_TRACEBACK"):
            raise
        code, message = _explain(error)
        if message:
            _say(message)
    return code


_run = run  # a command's module takes the name in this package when it is imported


def _run_command(arguments: list[str]) -> int:
    import typer

    from .app import make_app, own_commands

    logging.getLogger("transformers.utils.import_utils").addFilter(_is_not_about_torchvision)
    try:
        app = make_app()
    except (PluginError, KeyboardInterrupt) as error:
        if arguments[:1] not in ([name] for name in _NEED_NO_PLUGINS):
            raise
        if arguments[:1] == ["--version"]:  # the doctor says it among its findings
            _say(notes_of(error) or str(error))
        app = make_app(own_commands())
    try:
        result = app(arguments, prog_name="flowblend", standalone_mode=False)
    except typer.Abort as error:  # of a prompt that a plugin's command may show
        raise KeyboardInterrupt from error
    if result == _INTERRUPTED:  # typer turns Ctrl-C into an exit
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0  # of a typer.Exit


def _is_not_about_torchvision(record: logging.LogRecord) -> bool:
    """transformers warns that it does without torchvision whenever diffusers imports an image processor."""
    return "requires torchvision" not in record.getMessage()


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message of an error."""
    if isinstance(error, FlowBlendError):
        return 2 if isinstance(error, _USAGE_ERRORS) else 1, str(error)
    if hasattr(error, "format_message"):  # typer's own: a wrong option or value
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        return 2, f"{message}. Try `flowblend --help`." if message else ""  # nothing where the help was printed instead
    if isinstance(error, ModuleNotFoundError) and (missing := missing_module(error)):
        return 1, missing
    if is_out_of_memory(error):
        return 1, "out of memory. Use fewer frames, a smaller size or fewer prompts."
    unexpected = f"{type(error).__name__}: {error}".rstrip(". ")
    why = notes_of(error) or "This is unexpected; FLOWBLEND_TRACEBACK=1 shows where it was raised."
    return 1, f"{unexpected}. {why}"


def _say(message: str) -> None:
    print(f"flowblend: {' '.join(message.split())}", file=sys.stderr)
