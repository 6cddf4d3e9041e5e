"""Reading back what a calibration of an adapter wrote: a JSON file, or one that comes with this package."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Measured = TypeVar("Measured")


def read_measured(
    path: str | Path,
    parse: Callable[[Mapping[str, Any]], Measured],
    *,
    option: str,
    technique: str,
    holds: str,
    built_in: Path,
) -> Measured:
    """What a file holds.

    Args:
        path: a file, or the name of one in ``built_in``.
        parse: makes it of the JSON object; ``KeyError``, ``TypeError``, ``ValueError`` and ``AttributeError`` say that
            the object is not what it should be.
        option: of the adapter, for the error.
        technique: which must have written it.
        holds: what it should hold, for the error.
        built_in: folder of the files that come with this package.

    Raises:
        ValueError: it is not there, or holds something else. The text ends without a full stop or a remedy.
    """
    shipped = built_in / f"{path}.json"
    source = shipped if shipped.is_file() else Path(path).expanduser()
    asked = f"{option}={str(path)!r}"
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{asked}: there is no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{asked} cannot be read as JSON ({error})") from error
    try:
        if data["technique"] != technique:
            raise ValueError(f"it is of {data['technique']}")
        return parse(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{asked} holds no {holds}: {what}") from error
