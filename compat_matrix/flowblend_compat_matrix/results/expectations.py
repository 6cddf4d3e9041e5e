"""Known outcomes with a reason, as data: ``expectations.toml``.

Where a cell does not do what its adapters declare, an expectation says why; an expected verdict is no failure.
An expectation that no longer comes true is stale, and that is one: it would hide the next surprise.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowblend_plugins.contract.spec import read_spec
from flowblend_plugins.errors import AdapterError, UsageError
from flowblend_plugins.types import JsonObject

from .matrix_results import CellResult
from .verdicts import Observed, agrees

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

SHIPPED = Path(__file__).with_name("expectations.toml")
"""What is known of the embedded pairs at their own operating point."""

ANY = "*"
UNEXPECTED = "unexpected"
STALE_EXPECTATION = "stale_expectation"


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """One known outcome, with its reason.

    Attributes:
        pairs, schedules: names and texts that it is about; empty for all.
        stack: one entry for each adapter of the stack in any order: a name, a whole ``"name(option=value)"`` or ``"*"``
            for any; ``None`` for every stack and none.
        observed: verdicts that are expected; any of them makes it come true.
        reason: why.
        source: the file, for messages.
    """

    pairs: frozenset[str] = frozenset()
    schedules: frozenset[str] = frozenset()
    stack: tuple[str, ...] | None = None
    observed: frozenset[str]
    reason: str
    source: str

    def is_about(self, cell: CellResult) -> bool:
        """Whether it says something of this cell."""
        return (
            (not self.pairs or cell.pair in self.pairs)
            and (not self.schedules or cell.schedule in self.schedules)
            and (self.stack is None or _fits(self.stack, cell.adapters))
        )

    def __str__(self) -> str:
        stack = "any stack" if self.stack is None else " + ".join(self.stack) or "nothing stacked"
        where = [", ".join(sorted(names)) for names in (self.pairs, self.schedules) if names]
        return f"{' / '.join([*where, stack])}: {' or '.join(sorted(self.observed))}"


def _fits(wanted: Sequence[str], adapters: Sequence[str]) -> bool:
    """Whether each entry names another adapter of the stack, and none is left."""
    left = [(text, _name(text)) for text in adapters]
    if len(wanted) != len(left):
        return False
    for entry in sorted(wanted, key=lambda text: (text == ANY, "(" not in text)):  # what names most comes first
        found = next((one for one in left if entry in (*one, ANY) or _is_same(entry, one[0])), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _name(text: str) -> str:
    return text.partition("(")[0].strip()


def _is_same(one: str, other: str) -> bool:
    """Whether two texts name the same adapter with the same options, however they are spaced."""
    return "(" in one and _name(one) == _name(other) and read_spec(one) == read_spec(other)


def read_expectations(path: Path) -> list[Expectation]:
    """The ``[[expectation]]`` entries of a file.

    Raises:
        UsageError: it cannot be read, or an entry is wrong; says which and how.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--expectations {path}: it cannot be read: {error}.") from error
    entries = content.pop("expectation", [])
    if content or not isinstance(entries, list):
        raise UsageError(f"--expectations {path}: expected [[expectation]] entries and nothing else.")
    return [_read_entry(entry, path, number) for number, entry in enumerate(entries, start=1)]


def shipped_expectations(pairs: Collection[str]) -> list[Expectation]:
    """Known outcomes of these embedded pairs, which must be run at their own operating point."""
    about = ((entry, entry.pairs & frozenset(pairs)) for entry in read_expectations(SHIPPED))
    return [replace(entry, pairs=common) for entry, common in about if common]


def _read_entry(entry: JsonObject, path: Path, number: int) -> Expectation:
    def wrong(what: str) -> UsageError:
        return UsageError(f"--expectations {path}: entry {number}: {what}")

    keys = {"pair", "schedule", "adapters", "observed", "reason"}
    if unknown := sorted(set(entry) - keys):
        raise wrong(f"{', '.join(unknown)} is not known. Known: {', '.join(sorted(keys))}.")
    texts: dict[str, list[str]] = {}
    for key in ("pair", "schedule", "adapters", "observed"):
        value = entry.get(key, [])
        texts[key] = [value] if isinstance(value, str) else value
        if not isinstance(texts[key], list) or not all(isinstance(text, str) for text in texts[key]):
            raise wrong(f"{key} = {value!r}: expected a text or a list of texts.")
    known = {observed.value for observed in Observed}
    if not texts["observed"] or not known.issuperset(texts["observed"]):
        raise wrong(f"observed = {entry.get('observed')!r}: expected one or more of {', '.join(sorted(known))}.")
    reason = entry.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise wrong("it gives no reason. A verdict that nobody can explain cannot be expected.")
    for text in texts["adapters"]:
        if "(" in text:
            try:
                read_spec(text)
            except AdapterError as error:
                raise wrong(str(error)) from error
    return Expectation(
        pairs=frozenset(texts["pair"]),
        schedules=frozenset(texts["schedule"]),
        stack=tuple(texts["adapters"]) if "adapters" in entry else None,
        observed=frozenset(texts["observed"]),
        reason=" ".join(reason.split()),
        source=path.name,
    )


def check_expectations(cell: CellResult, expectations: Iterable[Expectation]) -> None:
    """Say of a finished cell what was expected of it, and whether it is a surprise.

    Args:
        cell: its ``expectation`` and ``surprise`` are filled in.
        expectations: the last one that is about the cell counts, so that a user's own follow the shipped ones.
    """
    cell.expectation = cell.surprise = None
    about = [expectation for expectation in expectations if expectation.is_about(cell)]
    showed_nothing = cell.observed == Observed.SKIPPED.value
    # Refused as declared: it was not run, so what would have become of it is not known.
    was_not_run = cell.declared == cell.observed == Observed.REFUSED.value
    if about and not showed_nothing and not (was_not_run and cell.observed not in about[-1].observed):
        cell.expectation = about[-1].reason
        if cell.observed not in about[-1].observed:
            cell.surprise = STALE_EXPECTATION
    elif not agrees(cell.declared, cell.observed):
        cell.surprise = UNEXPECTED
