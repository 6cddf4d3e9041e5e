"""Every error the package raises on purpose.

    FlowBlendError
    ├── ScheduleError          a stage schedule that cannot be read, or does not fit the number of steps
    ├── PairError              two denoisers (or a source of one) that cannot be blended
    ├── StackError             adapters that cannot work together, or on this pipeline
    ├── AdapterError           an adapter asked for by a wrong name or with wrong options
    ├── PluginError            a plugin that cannot be loaded, or breaks the contract
    ├── RoutingError           a pipeline or a call that cannot be routed rightly
    ├── ClockError             the position of a denoiser call in its generation cannot be known
    ├── FlopCountError         what a generation cost cannot be counted
    ├── UsageError             the command line asks for something that does not exist or contradicts itself
    └── OutputError            a result cannot be written where it should go

Each message says what was asked, what was found and what to do.
"""


class FlowBlendError(Exception):
    """Base of every error raised on purpose by this package."""


class ScheduleError(FlowBlendError, ValueError):
    """A stage schedule cannot be read, or does not fit the number of steps of a generation."""


class PairError(FlowBlendError, ValueError):
    """Two denoisers cannot be blended, or a denoiser cannot be loaded from the given source."""


class StackError(FlowBlendError, ValueError):
    """A stack of adapters cannot work, together or on this pipeline."""


class AdapterError(FlowBlendError, ValueError):
    """An adapter was asked for by an unknown name or with wrong options."""


class PluginError(FlowBlendError, RuntimeError):
    """A plugin cannot be loaded or breaks the hook contract."""


class RoutingError(FlowBlendError, RuntimeError):
    """A pipeline, or one call of it, cannot be routed rightly."""


class ClockError(FlowBlendError, RuntimeError):
    """The position of a denoiser call in its generation cannot be known."""


class FlopCountError(FlowBlendError, RuntimeError):
    """The FLOPs of a generation cannot be counted."""


class UsageError(FlowBlendError, ValueError):
    """The command line asks for something that does not exist or contradicts itself."""


class OutputError(FlowBlendError, OSError):
    """A result cannot be written where it should go."""


def add_note(error: BaseException, note: str) -> None:
    """Add a line to an error that keeps its class; Python 3.11 and later and the command line show it."""
    error.__notes__ = [*getattr(error, "__notes__", ()), note]  # type: ignore[attr-defined]


def notes_of(error: BaseException) -> str:
    """The lines that :func:`add_note` added, as one text."""
    return " ".join(getattr(error, "__notes__", ()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch says it with a class of its own on CUDA, and in words alone on the CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
