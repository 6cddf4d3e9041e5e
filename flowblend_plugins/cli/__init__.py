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

from ..errors import AdapterError, FlowBlendError, PluginError, ScheduleError, StackError, UsageError
from ..extras import missing_module

_INTERRUPTED = 130
_USAGE_ERRORS = (UsageError, ScheduleError, AdapterError, StackError)
_NEED_NO_PLUGINS = ("doctor", "--version")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: instead of the process's own.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; errors are one line on standard error."""
    try:
        code = _run_command(list(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as in `flowblend plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 1
    except Exception as error:
        if os.environ.get("FLOWBLEND_TRACEBACK"):
            raise
        code, message = _explain(error)
        if message:
            _say(message)
    if code == _INTERRUPTED:
        _say("interrupted; nothing half-written was left behind.")
    return code


def _run_command(arguments: list[str]) -> int:
    import typer

    from ..manager import make_plugin_manager
    from .app import make_app, own_commands

    logging.getLogger("transformers.utils.import_utils").addFilter(_is_not_about_torchvision)
    try:
        manager = make_plugin_manager()
    except PluginError:
        if arguments[:1] not in ([name] for name in _NEED_NO_PLUGINS):
            raise
        manager = own_commands()
    try:
        result = make_app(manager)(arguments, prog_name="flowblend", standalone_mode=False)
    except typer.Abort:  # of a prompt that a plugin's command may show
        return _INTERRUPTED
    return result if isinstance(result, int) else 0  # of a typer.Exit; typer turns Ctrl-C into one, too


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
    if _is_out_of_memory(error):
        return 1, "out of memory. Use fewer frames, a smaller size or fewer prompts."
    unexpected = f"{type(error).__name__}: {error}".rstrip(". ")
    return 1, f"{unexpected}. This is unexpected; FLOWBLEND_TRACEBACK=1 shows where it was raised."


def _is_out_of_memory(error: Exception) -> bool:
    """Torch says it with a class of its own on CUDA, and in words alone on the CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))


def _say(message: str) -> None:
    print(f"flowblend: {' '.join(message.split())}", file=sys.stderr)
