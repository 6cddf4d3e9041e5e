"""The ``flowblend`` command. Its commands come from plugins, our own included, through ``flowblend_register_commands``.

Exit codes: 0 done; 1 something found or made on the way is wrong; 2 the command line itself is; 130 interrupted.
Set ``FLOWBLEND_TRACEBACK=1`` to see where an error was raised.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..errors import AdapterError, FlowBlendError, ScheduleError, StackError, UsageError

_INTERRUPTED = 130
_USAGE_ERRORS = (UsageError, ScheduleError, AdapterError, StackError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: instead of the process's own.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; errors are one line on standard error."""
    import typer

    from ..manager import make_plugin_manager
    from .app import make_app

    try:
        app = make_app(make_plugin_manager())
        result = app(list(arguments), prog_name="flowblend", standalone_mode=False)
        code = result if isinstance(result, int) else 0  # of a typer.Exit; typer turns Ctrl-C into one, too
        return _interrupted() if code == _INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except FlowBlendError as error:
        _raise_if_asked()
        _say(str(error))
        return 2 if isinstance(error, _USAGE_ERRORS) else 1
    except MemoryError:
        _raise_if_asked()
        _say("out of memory. Use fewer frames, a smaller size or fewer prompts.")
        return 1
    except Exception as error:
        _raise_if_asked()
        if hasattr(error, "format_message"):  # typer's own: a wrong option or value
            message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
            if message:  # none where the help was printed instead
                _say(f"{message}. Try `flowblend --help`.")
            return 2
        _say(f"{type(error).__name__}: {error}. This is unexpected; FLOWBLEND_TRACEBACK=1 shows where it was raised.")
        return 1


def _interrupted() -> int:
    _say("interrupted; nothing half-written was left behind.")
    return _INTERRUPTED


def _say(message: str) -> None:
    print(f"flowblend: {' '.join(message.split())}", file=sys.stderr)


def _raise_if_asked() -> None:
    if os.environ.get("FLOWBLEND_TRACEBACK"):
        raise
