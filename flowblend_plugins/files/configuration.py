"""Configuration file: a schedule and a stack of adapters, as ``flowblend plan`` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from ..errors import FlowBlendError


class Configuration(TypedDict):
    """Schedule and adapters, as keyword arguments of :func:`flowblend_plugins.enable`."""

    schedule: str
    adapters: list[str]


def read_configuration(path: str | Path, pair: str | None = None) -> Configuration:
    """Read the schedule and adapters for ``enable(pipe, small, **read_configuration(path))``.

    Args:
        path: a JSON object with ``schedule`` and ``adapters``, such as the file that ``flowblend plan`` writes.
        pair: name of the registered pair that it is going to be used on, where that is known.

    Raises:
        FlowBlendError: there is no such file, it holds something else, or it was made for another pair.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FlowBlendError(f"configuration {path} does not exist. `flowblend plan --out DIR` writes one.") from error
    except (OSError, ValueError) as error:
        raise FlowBlendError(f"configuration {path} cannot be read: {error}.") from error
    schedule = found.get("schedule") if isinstance(found, dict) else None
    adapters = found.get("adapters") if isinstance(found, dict) else None
    if not isinstance(schedule, str) or not isinstance(adapters, list) or not all(isinstance(a, str) for a in adapters):
        raise FlowBlendError(
            f'configuration {path}: expected an object with "schedule", a text, and "adapters", a list of texts.'
        )
    made_for = found.get("pair")
    if pair is not None and made_for is not None and made_for != pair:
        raise FlowBlendError(
            f"configuration {path} was made for pair {made_for}, and this is {pair}. Calibrate and plan for that one: "
            f"`flowblend calibrate forecast --pair {pair}`, then `flowblend plan --moments FILE`."
        )
    return {"schedule": schedule, "adapters": list(adapters)}
