"""A denoiser's blocks as one unit that can be passed through.

Each block is given a dynamic subclass of its own class, as the router gives the denoiser: that sits outside every patch
of a block's ``forward`` (offloading, compilation), copies nothing of the denoiser's own ``forward``, and setting the
class back is a complete undo. The first block asks what to do; where the residual is reused, every block hands on what
it is given, and the residual is added where it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn, Protocol

import torch
from torch import nn

from flowblend_plugins import RoutingError
from flowblend_plugins.types import Args, Denoiser, Keywords, KeywordsView, Output

from ..uncompiled import uncompiled
from .published import TIME
from .signals import layout_of


class StackController(Protocol):
    """Decides, and keeps what was computed."""

    def entering(self, block: nn.Module, arguments: KeywordsView, time: torch.Tensor | None) -> bool | torch.Tensor:
        """Before the first block: the residual to reuse; True to compute and be given it, False to only compute."""
        ...

    def computed(self, residual: torch.Tensor) -> None:
        """The residual of a call that was computed, (batch, tokens, width)."""
        ...


class BlockStack:
    """The blocks of one denoiser, under a controller while attached.

    Args:
        denoiser: of a class in ``LAYOUTS``.
        controller: asked before the first block of every call.
        signals: names of the signals that the controller reads.

    Attributes:
        block_names: the blocks' names in the denoiser: what does not run where the residual is reused.
    """

    def __init__(self, denoiser: Denoiser, controller: StackController, signals: tuple[str, ...]) -> None:
        self._denoiser = denoiser
        self._layout = layout_of(denoiser)
        self._controller = controller
        self._signals = signals
        self._blocks: tuple[nn.Module, ...] = tuple(getattr(denoiser, self._layout.blocks))
        self._tail = getattr(denoiser, self._layout.tail) if self._layout.tail else None
        self.block_names = frozenset(f"{self._layout.blocks}.{index}" for index in range(len(self._blocks)))
        self._forget()

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as undo:
            undo.callback(self._forget)
            for index, block in enumerate(self._blocks):
                undo.callback(setattr, block, "__class__", type(block))
                block.__class__ = _stacked_class(type(block), self, index == 0, index == len(self._blocks) - 1)
            if self._tail is not None:
                undo.callback(self._tail.register_forward_pre_hook(self._before_tail).remove)
            if TIME in self._signals:
                embedder = self._denoiser.condition_embedder
                undo.callback(embedder.time_embedder.register_forward_hook(self._time_embedded).remove)
            yield

    @property
    def is_intact(self) -> bool:
        """Whether the denoiser still runs the blocks that were taken over."""
        blocks = tuple(getattr(self._denoiser, self._layout.blocks))
        tail = getattr(self._denoiser, self._layout.tail) if self._layout.tail else None
        return tail is self._tail and len(blocks) == len(self._blocks) and all(map(_is, blocks, self._blocks))

    def call(self, base: type, block: nn.Module, is_first: bool, is_last: bool, args: Args, kwargs: Keywords) -> Output:
        """Call of one transformer block."""
        if is_first:
            self._enter(block, args, kwargs)
        if self._residual is not None:
            hidden_states = args[0] if args else kwargs["hidden_states"]
            return self._reused() if is_last and self._tail is None else hidden_states
        output = base.__call__(block, *args, **kwargs)
        if is_last and self._tail is None and self._is_kept:
            self._leave(output)
        return output

    @uncompiled
    def _enter(self, block: nn.Module, args: Args, kwargs: KeywordsView) -> None:
        arguments = dict(zip(self._layout.block_arguments, args, strict=False)) | dict(kwargs)
        decision = self._controller.entering(block, arguments, self._time)
        self._residual = decision if isinstance(decision, torch.Tensor) else None
        self._is_kept = decision is True
        self._entry = arguments["hidden_states"] if decision is not False else None
        self._time = None

    @uncompiled
    def _reused(self) -> torch.Tensor:
        assert self._entry is not None
        assert self._residual is not None
        output = self._entry + self._residual
        self._forget()
        return output

    @uncompiled
    def _leave(self, output: torch.Tensor) -> None:
        assert self._entry is not None
        residual = output - self._entry
        self._forget()
        self._controller.computed(residual)

    @uncompiled
    def _before_tail(self, module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if self._residual is not None:
            return (self._reused(),)
        if self._is_kept:
            self._leave(args[0])
        return None

    def _time_embedded(self, module: nn.Module, args: object, output: torch.Tensor) -> None:
        self._time = output

    def _forget(self) -> None:
        self._residual: torch.Tensor | None = None
        self._entry: torch.Tensor | None = None
        self._time: torch.Tensor | None = None
        self._is_kept = False


def _is(a: object, b: object) -> bool:
    return a is b


def _stacked_class(base: type, stack: BlockStack, is_first: bool, is_last: bool) -> type:
    """A subclass of a block's class that nobody can tell from it by name, and that asks the stack."""

    def __call__(self: nn.Module, *args: object, **kwargs: object) -> Output:
        return stack.call(base, self, is_first, is_last, args, kwargs)

    def __reduce_ex__(self: nn.Module, protocol: object) -> NoReturn:
        raise RoutingError(
            f"a {base.__name__} with TeaCache on it cannot be pickled or deep-copied. Call disable() first, or use "
            "save_pretrained()."
        )

    namespace = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), {**namespace, "__call__": __call__, "__reduce_ex__": __reduce_ex__})
