"""Facts of a diffusers pipeline that only its source tells: guidance branches, and what it hands its sampler.

Each class is read once. Where its source is not on this machine nothing is known, so nothing is refused for it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType


@dataclass(frozen=True, kw_only=True)
class PipelineSource:
    """Facts read off a pipeline's ``__call__``; all of them empty where there is no source to read.

    Attributes:
        branches: guidance branches by the names of its cache contexts, in the order in which it opens them.
        batches_uncond_first: a batched call holds the unconditional half first.
        timestep_arguments: those of ``sigmas``, ``timesteps`` and ``mu`` that it always hands to
            ``scheduler.set_timesteps``: ``mu`` if it is passed on at all, the others if it makes a list of its own
            (``None`` is not handed on).
        leaves_out_last_timestep: it takes no step from the last of its sampler's timesteps.
        copies_scheduler: it steps a copy of its sampler too (LTX2 for sound).
        step_keywords: keywords of its ``scheduler.step`` calls.
        call_keywords: keywords of any call that it makes.
    """

    branches: tuple[str, ...] = ()
    batches_uncond_first: bool = False
    timestep_arguments: tuple[str, ...] = ()
    leaves_out_last_timestep: bool = False
    copies_scheduler: bool = False
    step_keywords: frozenset[str] = frozenset()
    call_keywords: frozenset[str] = frozenset()

    @property
    def branches_called_apart(self) -> bool | None:
        """Whether each guidance branch is a call of its own; ``None`` where it opens no cache context."""
        return "uncond" in self.branches if self.branches else None


def read_source(pipe: object) -> PipelineSource:
    """Read the source of a pipeline's ``__call__``.

    Args:
        pipe: the diffusers pipeline, enabled or not.
    """
    return _read(inspect.unwrap(type(pipe).__call__))


@functools.lru_cache(maxsize=64)
def opens_cache_contexts(pipeline_class: type) -> bool | None:
    """Whether any method of a pipeline opens cache contexts; ``None`` where there is no source to read."""
    try:
        return any(
            "cache_context(" in inspect.getsource(cls) for cls in pipeline_class.__mro__ if cls.__module__ != "builtins"
        )
    except (OSError, TypeError):
        return None


@functools.lru_cache(maxsize=64)  # parsing takes milliseconds, and every adapter asks
def _read(call: FunctionType) -> PipelineSource:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(call)))
    except (OSError, TypeError):
        return PipelineSource()
    nodes = list(ast.walk(tree))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    samplers = [node for node in calls if _called(node) in ("set_timesteps", "retrieve_timesteps")]
    passed = {name for node in samplers for name in (*_keywords(node), *_names(node.args))}
    first = min((node.lineno for node in samplers), default=0)
    stored = (node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    made = {node.id for node in stored if node.lineno < first} | ({"mu"} & passed)
    written = {ast.unparse(node) for node in nodes if isinstance(node, (ast.Call, ast.Subscript))}
    return PipelineSource(
        branches=_branches(calls),
        batches_uncond_first=any(map(_splits_uncond_first, nodes)),
        timestep_arguments=tuple(name for name in ("sigmas", "timesteps", "mu") if name in passed & made),
        leaves_out_last_timestep="self.scheduler.timesteps[:-1]" in written,
        copies_scheduler="copy.deepcopy(self.scheduler)" in written,
        step_keywords=frozenset(name for node in calls if _called(node) == "step" for name in _keywords(node)),
        call_keywords=frozenset(name for node in calls for name in _keywords(node)),
    )


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _keywords(node: ast.Call) -> Iterator[str]:
    return (keyword.arg for keyword in node.keywords if keyword.arg)


def _names(nodes: Iterable[ast.expr]) -> Iterator[str]:
    return (node.id for node in nodes if isinstance(node, ast.Name))


def _branches(calls: list[ast.Call]) -> tuple[str, ...]:
    opened = sorted(
        (c for c in calls if _called(c) == "cache_context" and c.args), key=lambda c: (c.lineno, c.col_offset)
    )
    names = (getattr(call.args[0], "value", None) for call in opened)
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def _splits_uncond_first(node: ast.AST) -> bool:
    """``..._uncond, ..._text = noise_pred.chunk(2)``, as diffusers' batched pipelines write it."""
    if not (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Call)
    ):
        return False
    names = [getattr(target, "id", "") for target in node.targets[0].elts]
    chunked = getattr(getattr(node.value.func, "value", None), "id", None)
    is_split = _called(node.value) == "chunk" and chunked == "noise_pred" and len(names) == 2
    return is_split and "uncond" in names[0] and "text" in names[1]
