"""Options of a command in groups: a dataclass each, so that what belongs together is declared and passed together."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from ..types import Keywords

Command = TypeVar("Command", bound=Callable[..., None])


def grouped(command: Command) -> Command:
    """A command for typer, with the fields of its parameters that are dataclasses as options.

    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Size:
    ...     height: int = 64
    >>> @grouped
    ... def show(size: Size, loud: bool = False) -> None:
    ...     print(size.height, loud)
    >>> [*inspect.signature(show).parameters]
    ['height', 'loud']
    >>> show(height=32)
    32 False
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(
                parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY),
            )
            continue
        assert isinstance(kind, type)
        groups[parameter.name] = kind
        of_fields = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=of_fields[field.name]
            )
            for field in dataclasses.fields(kind)
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made: Keywords = {}
        for name, kind in groups.items():
            fields = [field.name for field in dataclasses.fields(kind)]
            made[name] = kind(**{field: given.pop(field) for field in fields if field in given})
        command(**made, **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run  # type: ignore[return-value]
