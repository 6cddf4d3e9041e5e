"""State of a pipeline and its denoisers that decides what a generation computes, beyond their weights.

Caches, guidance techniques and attention implementations all leave something behind: an attribute on the denoiser or
on its class, a hook, another ``forward`` or another attention processor on some module. ``enable()`` reads this once;
a :class:`Watch` says at the start of every generation, in microseconds, whether any of it has changed since.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from ..types import Foreign, Keywords, KeywordsView, Pipeline

# Where a weight lies and in which precision changes nothing of what is computed with it.
_PLACEMENT = ("diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting")
_PIPELINE = "pipeline"

PatchKind = Literal["hook", "forward", "class forward", "processor", "backend"]
PATCH_KINDS = get_args(PatchKind)


class Patch(NamedTuple):
    """One thing that was set on a module of a denoiser and that may change what the module computes.

    Attributes:
        kind: a hook of diffusers', a ``forward`` on the module or on its class, an attention processor, or the
            attention backend that was chosen on one.
        path: the module's name in the denoiser.
        name: the hook's name, or that of the function, of the processor's class, or of the backend.
        value: what was set.
    """

    kind: PatchKind
    path: str
    name: str
    value: Foreign


def patches_on(denoiser: nn.Module) -> Iterator[Patch]:
    """Everything of the kinds of :class:`Patch` on a denoiser; attention processors also where they are the default."""
    for path, module in denoiser.named_modules():
        own = vars(module)
        registry = own.get("_diffusers_hook")
        for name, hook in () if registry is None else registry.hooks.items():
            if not type(hook).__module__.startswith(_PLACEMENT):
                yield Patch("hook", path, name, hook)
        forward = _forward_of(own)
        if forward is not None and _is_foreign(forward, module):
            yield Patch("forward", path, _function_of(forward).__name__, forward)
        processor = own.get("processor", own["_modules"].get("processor"))
        if processor is not None:
            yield Patch("processor", path, type(processor).__name__, processor)
            backend = getattr(processor, "_attention_backend", None)
            if backend is not None:
                yield Patch("backend", path, str(getattr(backend, "value", backend)), backend)
    for path, module in (("", denoiser), *_blocks(denoiser)):
        owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
        if getattr(vars(owner)["forward"], "__module__", owner.__module__) != owner.__module__:
            yield Patch("class forward", path, owner.__name__, vars(owner)["forward"])


def marks_on(denoiser: nn.Module, names: Iterable[str]) -> Keywords:
    """Values of those of the named attributes that a denoiser or its class has."""
    owners = [vars(denoiser), *map(vars, _own_classes(type(denoiser)))]
    found = {}
    for name in names:
        owner = next((owner for owner in owners if name in owner), None)
        if owner is not None:
            found[name] = owner[name]
    return found


def package_of(forward: object) -> str:
    """The top-level package of the function that stands in for a ``forward``."""
    return (getattr(_function_of(forward), "__module__", None) or "").partition(".")[0]


class Watch:
    """Compares a pipeline and its denoisers with how they stood when this was made.

    Args:
        pipe: the diffusers pipeline.
        denoisers: letter to denoiser.
        marks: names of attributes that plugins declare (:attr:`AdapterTraits.sets`).
    """

    def __init__(self, pipe: Pipeline, denoisers: Mapping[str, nn.Module], marks: Iterable[str]) -> None:
        self._pipe, self._denoisers, self._marks = pipe, denoisers, sorted(marks)
        self._facts = self._read()
        self._prepare()

    def changes(self) -> dict[tuple[str, ...], object]:
        """Facts that differ, by what they are; a value of ``None`` is gone. Empty, quickly, if nothing differs.

        Where it says that nothing differs, small things may have come that mean nothing, such as an empty registry.
        """
        if self._glance() == self._seen:
            return {}
        now = self._read()
        found = {
            key: now.get(key)
            for key in self._facts.keys() | now.keys()
            if self._facts.get(key) is not now.get(key) and self._facts.get(key) != now.get(key)
        }
        if not found:
            self._prepare()
        return found

    def _read(self) -> dict[tuple[str, ...], object]:
        """Every fact by what it is: exact, and slow (milliseconds), since every module is looked at."""
        facts: dict[tuple[str, ...], object] = {
            (_PIPELINE, name): component for name, component in self._pipe.components.items()
        }
        facts[_PIPELINE, "__call__"] = type(self._pipe).__call__
        for letter, denoiser in self._denoisers.items():
            facts |= {(letter, patch.kind, patch.path, patch.name): patch.value for patch in patches_on(denoiser)}
            facts |= {(letter, "mark", name): mark for name, mark in marks_on(denoiser, self._marks).items() if mark}
            facts |= {(letter, "block", path): block for path, block in _blocks(denoiser)}
        return facts

    def _prepare(self) -> None:
        """Lay out what a glance reads, so that it only has to read it."""
        modules = list(dict.fromkeys(itertools.chain(*(d.modules() for d in self._denoisers.values()))))
        dicts = [vars(module) for module in modules]
        self._dicts = dicts
        self._patched = [own for own in dicts if "forward" in own]
        self._registries = [own["_diffusers_hook"].hooks for own in dicts if "_diffusers_hook" in own]
        processors = [own.get("processor", own["_modules"].get("processor")) for own in dicts]
        self._holders = [
            own if "processor" in own else own["_modules"]
            for own, processor in zip(dicts, processors, strict=True)
            if processor is not None
        ]
        self._processors = [vars(processor) for processor in processors if hasattr(processor, "__dict__")]
        self._children = [own["_modules"] for own in (vars(d) for d in self._denoisers.values())]
        self._children += [child._modules for d in self._denoisers.values() for child in block_lists(d).values()]
        # By identity, for a stand-in is equal to the class below it.
        kinds = {id(above): above for kind in map(type, modules) for above in _own_classes(kind)}
        self._classes = [vars(kind) for kind in kinds.values()]
        roots = [*self._denoisers.values()]
        owners = {id(owner): owner for owner in itertools.chain(roots, *(_own_classes(type(root)) for root in roots))}
        self._owners = [vars(owner) for owner in owners.values()]
        self._components = tuple(self._pipe.components)
        self._seen = self._glance()

    def _glance(self) -> list[object]:
        """Values of which one differs whenever a fact does: some false alarms, no false calm."""
        of_pipe = vars(self._pipe)
        return [
            [of_pipe.get(name) for name in self._components],
            type(self._pipe).__call__,
            list(map(len, self._dicts)),  # a new attribute on any module: a forward, a registry of hooks
            [_forward_of(own) for own in self._patched],
            [list(hooks.values()) for hooks in self._registries],
            [own.get("processor") for own in self._holders],
            [own.get("_attention_backend") for own in self._processors],
            [list(children.values()) for children in self._children],
            list(map(len, self._classes)),
            [own.get("forward") for own in self._classes],
            [[own.get(name) for name in self._marks] for own in self._owners],
        ]


def block_lists(denoiser: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of blocks directly under a denoiser, by name."""
    return {name: child for name, child in denoiser.named_children() if isinstance(child, nn.ModuleList)}


def _blocks(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, blocks in block_lists(denoiser).items():
        yield from ((f"{name}.{index}", block) for index, block in enumerate(blocks))


def _own_classes(kind: type) -> list[type]:
    """A class and those above it, up to the one that has the ``forward``."""
    last = next(index for index, one in enumerate(kind.__mro__) if "forward" in vars(one))
    return [*kind.__mro__[: last + 1]]


def _forward_of(own: KeywordsView) -> Foreign | None:
    """The function set as a module's ``forward``, beneath accelerate's, which is exchanged in every generation."""
    return own.get("_old_forward") if "_hf_hook" in own else own.get("forward")


def _is_foreign(forward: Foreign, module: nn.Module) -> bool:
    """Whether a ``forward`` on an instance is other than the class's own, diffusers' hooks and compilation."""
    if getattr(forward, "__func__", None) is type(module).forward or hasattr(forward, "_torchdynamo_orig_callable"):
        return False
    return _function_of(forward).__module__ != "diffusers.hooks.hooks"


def _function_of(forward: Any) -> Any:
    while isinstance(forward, functools.partial):
        forward = forward.func
    return getattr(forward, "__func__", forward)
