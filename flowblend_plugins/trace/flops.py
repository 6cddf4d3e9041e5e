"""FLOPs of one denoiser forward, counted by running the real architecture without weights or data.

The denoiser is rebuilt from its config out of fake tensors (shapes on the meta device that answer as if on a CPU, which
some models ask for) and called with the recorded shapes under torch's own ``FlopCounterMode``. So hooks, LoRA layers
and compilation of the user's module play no part, and nothing of it is touched. The counter silently omits fused
attention on a CPU, hence the plain matrix products asked for below.

A multiply-add counts as 2. ``docs/flops.md`` says how the published figures are counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import FlopCountError
from ..types import Args, DiffusersClass, JsonView, Keywords, KeywordsView, Output

_LINEAR_OPERATORS = frozenset({"aten.mm", "aten.addmm", "aten._scaled_mm"})
_PLAIN_TYPES = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device})


class TensorInput(NamedTuple):
    """A tensor as FLOPs see it."""

    shape: torch.Size
    dtype: torch.dtype


class OpaqueInput(NamedTuple):
    """An input of a type that is not kept; a call that has one cannot be counted."""

    type_name: str


class CallInputs(NamedTuple):
    """Inputs of one denoiser call with every tensor replaced by its :class:`TensorInput`."""

    args: Args
    kwargs: Keywords


class ForwardFlops(NamedTuple):
    """FLOPs of one denoiser forward.

    Attributes:
        linear: linear layers only, which is how the FlowBlending paper counts: no attention products, no convolutions.
        attention: the products of queries with keys and of attention weights with values.
        total: everything counted: linear, attention and convolutions (for a UNet most of it).
    """

    linear: int
    attention: int
    total: int


def describe_inputs(args: Args, kwargs: KeywordsView) -> CallInputs:
    """Describe a call's inputs for a later count (once a denoiser call, so it must be cheap)."""
    return CallInputs(
        tuple([_describe(value) for value in args]) if args else (),
        {name: _describe(value) for name, value in kwargs.items()},
    )


def _describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return TensorInput(value.shape, value.dtype)
    kind = type(value)
    if kind in _PLAIN_TYPES:
        return value
    if kind is tuple or kind is list:
        return kind(_describe(item) for item in value)
    if kind is dict:
        return {key: _describe(item) for key, item in value.items()}
    return OpaqueInput(kind.__qualname__)


# A count follows from class, config and shapes alone, so every trace of a process may use it.
_COUNTED: weakref.WeakKeyDictionary[type, dict[tuple[str, str], ForwardFlops]] = weakref.WeakKeyDictionary()


class FlopCounter:
    """Counts forwards of one denoiser, each combination of input shapes once in a process.

    Args:
        denoiser_class: a diffusers model class.
        config: what ``denoiser_class.from_config`` takes.
    """

    def __init__(self, denoiser_class: type[nn.Module], config: JsonView) -> None:
        self._class = denoiser_class
        self._config = dict(config)
        self._config_key = repr(sorted(self._config.items()))

    @classmethod
    def of(cls, denoiser: nn.Module) -> FlopCounter:
        """A counter for a loaded denoiser; nothing of it is kept but its class and config."""
        return cls(type(denoiser), getattr(denoiser, "config", {}))

    def count(self, inputs: CallInputs, skipped: frozenset[str] = frozenset()) -> ForwardFlops:
        """FLOPs of one forward with these inputs; see :func:`count_forward`."""
        key = self._config_key, repr((inputs.args, sorted(inputs.kwargs.items()), sorted(skipped)))
        counted = _COUNTED.setdefault(self._class, {})
        if key not in counted:
            counted[key] = count_forward(self._class, self._config, inputs, skipped)
        return counted[key]


def count_forward(
    denoiser_class: type[nn.Module], config: JsonView, inputs: CallInputs, skipped: frozenset[str] = frozenset()
) -> ForwardFlops:
    """FLOPs of one forward of a diffusers model of this class and config, but for modules that a cache left out.

    Args:
        denoiser_class, config: what the model is rebuilt from.
        inputs: of the call.
        skipped: names of modules that did not run, as in ``named_modules()``; none of them within another.

    Masks have shapes here but no values, so a model that leaves masked tokens out of its attention (Mochi) is counted
    as if none were masked.

    Raises:
        FlopCountError: the model cannot be built or run without data, or an input was not kept.
    """
    from diffusers import attention_backend
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    name = denoiser_class.__name__
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), FakeTensorMode():  # draws no random numbers
            denoiser = cast(DiffusersClass, denoiser_class).from_config(config).eval()
            # The rebuilt denoiser has torch's default dtype, whatever the user's has.
            dtype = torch.get_default_dtype()
            args = [fake_input(value, dtype) for value in inputs.args]
            kwargs = {key: fake_input(value, dtype) for key, value in inputs.kwargs.items()}
            with attention_backend("native"), sdpa_kernel(SDPBackend.MATH), _NoTokenMasked(), counter:
                denoiser(*args, **kwargs)
    except FlopCountError:
        raise
    except Exception as error:  # whatever an architecture does that needs data
        raise FlopCountError(
            f"the FLOPs of {name} cannot be counted from shapes alone: it raised {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}. The calls, outcomes and times in the trace "
            "hold."
        ) from error
    by_module = counter.get_flop_counts()
    flops = {str(operator): count for operator, count in by_module["Global"].items()}
    for module in skipped:
        for operator, count in by_module.get(f"{name}.{module}", {}).items():
            flops[str(operator)] -= count
    linear = sum(count for operator, count in flops.items() if operator in _LINEAR_OPERATORS)
    convolution = sum(count for operator, count in flops.items() if "conv" in operator)
    total = sum(flops.values())
    return ForwardFlops(linear=linear, attention=total - linear - convolution, total=total)


def fake_input(value: object, dtype: torch.dtype) -> object:
    """An input for a rebuilt denoiser, from its description; floating point is in the rebuilt one's ``dtype``.

    Raises:
        FlopCountError: the input was not kept.
    """
    if isinstance(value, TensorInput):
        return torch.empty(value.shape, dtype=dtype if value.dtype.is_floating_point else value.dtype)
    if isinstance(value, OpaqueInput):
        raise FlopCountError(
            f"the FLOPs of this call cannot be counted: one of its inputs is a {value.type_name}, of which the trace "
            "keeps no description. Tensors, plain values, and tuples, lists and dicts of them are kept."
        )
    if isinstance(value, (tuple, list)):
        return type(value)(fake_input(item, dtype) for item in value)
    if isinstance(value, dict):
        return {key: fake_input(item, dtype) for key, item in value.items()}
    return value


class _NoTokenMasked(TorchDispatchMode):
    """The positions that a mask leaves: all of them, since a fake tensor cannot say which."""

    def __torch_dispatch__(
        self, func: Callable[..., Output], types: object, args: Args = (), kwargs: Keywords | None = None
    ) -> Output:
        if func is torch.ops.aten.nonzero.default:
            mask = args[0]
            return torch.empty(mask.numel(), mask.dim(), dtype=torch.int64, device=mask.device)
        return func(*args, **(kwargs or {}))
