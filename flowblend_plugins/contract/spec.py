"""Adapters as text: ``"teacache(threshold=0.1)"`` is read, checked against the options, and written.

Only literals as keyword arguments are read; nothing is evaluated.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from ..errors import AdapterError
from ..types import Keywords, KeywordsView
from .adapter import Adapter

A = TypeVar("A", bound=Adapter)


def read_spec(text: str) -> tuple[str, Keywords]:
    """Name and options of ``"name"`` or ``"name(option=value, ...)"``.

    Raises:
        AdapterError: the text is neither of these, or a value is not a literal.
    """
    malformed = AdapterError(
        f'adapter {text!r} cannot be read: expected a name like "unipc", or a name with options by keyword like '
        '"unipc(num_inference_steps=25)".'
    )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise malformed from error
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
        raise malformed
    options: Keywords = {}
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise malformed
        try:
            options[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise AdapterError(
                f"adapter {text!r}: the value of {keyword.arg} is no literal. Write a number, a quoted text, True, "
                "False, None, or a list of these."
            ) from error
    return tree.func.id, options


def write_spec(adapter: Adapter) -> str:
    """The text that gives this adapter again; options at their defaults are left out."""
    options = [
        f"{field.name}={getattr(adapter, field.name)!r}"
        for field in dataclasses.fields(adapter)  # type: ignore[arg-type]
        if getattr(adapter, field.name) != _default(field)
    ]
    return f"{adapter.name}({', '.join(options)})" if options else adapter.name


def adapter_from_spec(text: str, known: Mapping[str, type[Adapter]]) -> Adapter:
    """The adapter that a text asks for.

    Raises:
        AdapterError: no adapter of that name is known, or an option is unknown, of a wrong type or out of range.
    """
    name, options = read_spec(text)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        have = f"The adapters installed are {', '.join(sorted(known))}." if known else "No adapter is installed."
        raise AdapterError(f"there is no adapter {name!r}.{hint} {have}")
    return make_adapter(known[name], options)


def make_adapter(adapter_class: type[A], options: KeywordsView) -> A:
    """An adapter with checked options. Raises ``AdapterError`` naming the adapter, the option and those accepted."""
    hints = typing.get_type_hints(adapter_class)
    accepted = {field.name: hints[field.name] for field in dataclasses.fields(adapter_class)}  # type: ignore[arg-type]
    checked = {}
    for option, value in options.items():
        if option not in accepted:
            close = difflib.get_close_matches(option, accepted, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise AdapterError(
                f"adapter {adapter_class.name!r} has no option {option}.{hint} {describe_options(adapter_class)}"
            )
        if not _fits(value, accepted[option]):
            raise AdapterError(
                f"adapter {adapter_class.name!r}: {option}={value!r} is a {type(value).__name__}, expected "
                f"{_type_name(accepted[option])}. {describe_options(adapter_class)}"
            )
        checked[option] = value
    try:
        return adapter_class(**checked)
    except (ValueError, TypeError) as error:
        reason = str(error).rstrip(".")
        raise AdapterError(f"adapter {adapter_class.name!r}: {reason}. {describe_options(adapter_class)}") from error


def describe_options(adapter_class: type[Adapter]) -> str:
    """One sentence on the options with their types and defaults."""
    hints = typing.get_type_hints(adapter_class)
    options = []
    for field in dataclasses.fields(adapter_class):  # type: ignore[arg-type]
        default = _default(field)
        shown = "" if default is dataclasses.MISSING else f" = {default!r}"
        options.append(f"{field.name}: {_type_name(hints[field.name])}{shown}")
    return f"Its options are {', '.join(options)}." if options else "It has no options."


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _fits(value: object, hint: Any) -> bool:
    """Whether a literal is of an annotated type. An int is a float; a bool is not an int."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if origin is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(arguments)
            and all(_fits(item, expected) for item, expected in zip(value, arguments, strict=True))
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _type_name(hint: Any) -> str:
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return " | ".join(map(_type_name, typing.get_args(hint))) if _is_union(hint) else str(hint).replace("typing.", "")


def _is_union(hint: object) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
