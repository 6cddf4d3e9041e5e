"""The noise levels that a pipeline call will set, found before the call by running the pipeline's own lines.

Pipelines compute what they hand to ``scheduler.set_timesteps`` from a few arguments of the call: LTX a shift from the
size of the video, LTX Condition a linear-quadratic list. These lines, and none of the rest, are taken out of the source
of ``__call__`` and run on a copy of the scheduler. A list that follows from anything else (from latents, say) is
unknown, and nothing is guessed.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

from ..types import KeywordsView, Pipeline, Scheduler

NOT_SET_HERE = "the pipeline does not set them in its own __call__"
_SETTERS = ("set_timesteps", "retrieve_timesteps")


@dataclass(frozen=True)
class TimestepLines:
    """Lines of a pipeline's ``__call__`` that set its sampler's timesteps.

    Attributes:
        code: the lines, compiled.
        arguments: of ``__call__``, those that they read.
    """

    code: CodeType
    arguments: tuple[str, ...]


def set_as_called(pipe: Pipeline, scheduler: Scheduler, call_arguments: KeywordsView) -> str | None:
    """Set a scheduler's timesteps as a call of the pipeline would.

    Args:
        pipe: the diffusers pipeline.
        scheduler: a copy of its sampler; its timesteps are set.
        call_arguments: keyword arguments of the call. One left out counts as known where its default is ``None``.

    Returns:
        Why the list is not known, in words; ``None`` where it is set.
    """
    calls = [inspect.unwrap(vars(kind)["__call__"]) for kind in type(pipe).__mro__ if "__call__" in vars(kind)]
    found = [(call, lines_of(call)) for call in dict.fromkeys(calls)]
    # A subclass that only wraps its parent's call sets no timesteps itself.
    call, lines = next(((call, lines) for call, lines in found if lines != NOT_SET_HERE), found[0])
    if isinstance(lines, str):
        return lines
    defaults = {name: p.default for name, p in inspect.signature(call).parameters.items()}
    missing = [
        name for name in lines.arguments if name not in call_arguments and defaults[name] is not None and name != "self"
    ]
    if missing:
        return f"they follow from {', '.join(missing)} of the call"
    values = {name: call_arguments.get(name) for name in lines.arguments}
    try:
        exec(lines.code, {**call.__globals__, **values, "self": _Standin(pipe, scheduler)})  # diffusers' own lines
    except (ValueError, TypeError, AttributeError, NameError, KeyError, ZeroDivisionError) as error:
        return f"{type(pipe).__name__} cannot set them for this call ({error})"
    return None


class _Standin:
    """A pipeline that lends its attributes and its scheduler's copy, so that the real one is not written to."""

    def __init__(self, pipe: Pipeline, scheduler: Scheduler) -> None:
        self._pipe = pipe
        self.scheduler = scheduler
        self._execution_device = torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


@functools.lru_cache(maxsize=64)
def lines_of(call: Any) -> TimestepLines | str:
    """The lines that set the timesteps, or why there are none that can be run alone."""
    try:
        function = ast.parse(textwrap.dedent(inspect.getsource(call))).body[0]
    except (OSError, TypeError):
        return "the source of the pipeline is not on this machine"
    if not isinstance(function, ast.FunctionDef):
        return "the source of the pipeline cannot be read"
    before, target = _path_to_setter(function.body)
    if target is None:
        return NOT_SET_HERE
    parameters = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    needed, kept = _loads(target), [target]
    if not _runs_alone(target):
        return "they follow from what the pipeline computes while it runs"
    for statement in reversed(before):
        if not _stores(statement) & needed:
            continue
        if not _runs_alone(statement):
            return "they follow from what the pipeline computes while it runs"
        kept.insert(0, statement)
        needed |= _loads(statement)
    module = ast.Module(kept, [])
    arguments = tuple(name for name in parameters if name in needed and name != "self")
    return TimestepLines(compile(module, "<timesteps>", "exec"), arguments)


def _path_to_setter(body: list[ast.stmt]) -> tuple[list[ast.stmt], ast.stmt | None]:
    """Every statement that runs before the sampler's timesteps are set, and the one that sets them."""
    before: list[ast.stmt] = []
    while True:
        found = [index for index, statement in enumerate(body) if any(map(_sets_timesteps, ast.walk(statement)))]
        if not found:
            return before, None
        statement = body[found[-1]]
        before += body[: found[-1]]
        if not isinstance(statement, (ast.For, ast.While, ast.With)):
            return before, statement
        body = statement.body


def _sets_timesteps(node: ast.AST) -> bool:
    """Call of ``self.scheduler.set_timesteps(...)`` or ``retrieve_timesteps(self.scheduler, ...)``."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name not in _SETTERS:
        return False
    return any(
        ast.unparse(part) == "self.scheduler" for part in (getattr(node.func, "value", None), *node.args) if part
    )


def _runs_alone(statement: ast.stmt) -> bool:
    """Whether a statement does no more than compute: it calls no method of the pipeline but its scheduler's."""
    if isinstance(statement, (ast.For, ast.While, ast.With, ast.Try)):
        return False
    called = (ast.unparse(node.func) for node in ast.walk(statement) if isinstance(node, ast.Call))
    return all(not name.startswith("self.") or name.startswith("self.scheduler.") for name in called)


def _names(node: ast.AST, context: type[ast.expr_context]) -> Iterator[str]:
    return (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context))


def _loads(node: ast.AST) -> set[str]:
    return set(_names(node, ast.Load))


def _stores(node: ast.AST) -> set[str]:
    return set(_names(node, ast.Store))
