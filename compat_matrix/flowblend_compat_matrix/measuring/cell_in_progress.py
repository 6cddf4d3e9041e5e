"""A cell while it is measured, and what becomes of it when something is raised over it."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flowblend_plugins.contract.traits import Composition
from flowblend_plugins.errors import AdapterError, PairError, ScheduleError, StackError, is_out_of_memory, notes_of

from ..results.cells import CellSpec
from ..results.matrix_results import CellResult
from ..results.verdicts import Observation, Observed
from .bench import GeneratedVideos
from .fidelity import Fidelity

_REFUSALS = (StackError, ScheduleError, PairError, AdapterError)


@dataclass
class CellInProgress:
    """A cell while it is measured.

    Attributes:
        spec: what is run.
        result: what is known of it so far.
        made: its videos of the first look, once they are made.
        fidelity: what they say beside large-only's, and those of later looks; ``seen`` everything that was observed.
        inert: names of the adapters of its stack that are declared to change nothing in it.
    """

    spec: CellSpec
    result: CellResult
    made: GeneratedVideos | None = None
    fidelity: Fidelity | None = None
    seen: Observation | None = None
    inert: frozenset[str] = frozenset()

    @property
    def is_running(self) -> bool:
        """Whether nothing has ended it yet."""
        return self.result.observed is None

    def conclude(self, verdict: Observed, reasons: Iterable[str]) -> None:
        """Give it its observed verdict."""
        self.result.observed = verdict.value
        self.result.reasons = list(reasons)

    @contextlib.contextmanager
    def capture_errors(self) -> Iterator[None]:
        """Turn an error that is raised in here into the cell's result; only an interruption passes through.

        A ``KeyboardInterrupt`` that bears a note was raised by the hook of a plugin, which the note names.
        """
        result, started = self.result, time.perf_counter()
        try:
            yield
        except _REFUSALS as error:
            self.conclude(Observed.REFUSED, [str(error)])
            if result.declared not in (None, Composition.REFUSED.value):
                result.reasons.append(f"Its traits say {result.declared!r}, so this was not expected.")
        except ModuleNotFoundError as error:
            self.conclude(Observed.SKIPPED, [f"{error.name} is not installed."])
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) and not notes_of(error):
                raise
            self.conclude(Observed.BROKEN, [_in_words(error)])
            result.failure = "out_of_memory" if is_out_of_memory(error) else "raised"
            result.error = "".join(traceback.format_exception(error)[-4:])
        result.seconds = (result.seconds or 0.0) + time.perf_counter() - started


def _in_words(error: BaseException) -> str:
    if is_out_of_memory(error):
        first_line = str(error).partition("\n")[0]
        return f"It ran out of memory: {type(error).__name__}: {first_line}".rstrip(": ")
    told = f"It raised {type(error).__name__}: {error}".rstrip(": ")
    return f"{told.removesuffix('.')}. {notes_of(error)}" if notes_of(error) else told
