"""Answers of ``flowblend_route`` and ``flowblend_answer`` hooks, checked before they are used."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from pluggy import HookCaller

from ..errors import PluginError
from ..step import StepContext
from ..types import Args, KeywordsView, Output


class Answers:
    """Kinds and shapes of denoiser outputs by the shape of the input, so that a wrong answer is told before it is used.

    A pipeline takes the first item of what it is given, whatever it is, and shapes that differ may still broadcast.
    """

    def __init__(self) -> None:
        self._seen: dict[torch.Size | None, tuple[bool, torch.Size]] = {}

    def see(self, output: Output, args: Args, kwargs: KeywordsView) -> None:
        """Take note of what a denoiser gave."""
        first = _first_tensor(output)
        if first is not None:
            self._seen[_input_shape(args, kwargs)] = isinstance(output, tuple), first.shape

    def check(self, output: Output, args: Args, kwargs: KeywordsView, step: StepContext, hook: HookCaller) -> None:
        """Raise ``PluginError`` where an answer is none that a denoiser could have given to this call."""
        first = _first_tensor(output)
        is_tuple, shape = self._seen.get(_input_shape(args, kwargs), (kwargs.get("return_dict") is False, None))
        if first is not None and isinstance(output, tuple) is is_tuple and shape in (None, first.shape):
            return
        found = "no tensor" if first is None else f"a tensor of shape {tuple(first.shape)}"
        wanted = ("a tuple" if is_tuple else "an output object") + " whose first item is a tensor"
        wanted += f" of shape {tuple(shape)}" if shape else ""
        raise PluginError(
            f"{_givers(hook)}: flowblend_answer returned a {type(output).__name__} with {found} at step "
            f"{step.step_index}, expected {wanted}, as denoisers give, or None to leave the call to the schedule."
        )


def _first_tensor(output: Output) -> torch.Tensor | None:
    while not isinstance(output, torch.Tensor):
        items: Iterable[Output] = output.values() if isinstance(output, Mapping) else output
        if not isinstance(output, (Mapping, tuple, list)) or not output:
            return None
        output = next(iter(items))
    return output


def _input_shape(args: Args, kwargs: KeywordsView) -> torch.Size | None:
    return next((value.shape for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


def check_letter(letter: object, known: Collection[str], step: StepContext, what: str, hook: HookCaller) -> None:
    """Raise ``PluginError`` where a hook names a denoiser that this pipeline does not have."""
    if not isinstance(letter, str) or letter not in known:
        raise PluginError(
            f"{_givers(hook)}: {what} {letter!r} at step {step.step_index}; the denoisers of this pipeline are "
            f"{', '.join(sorted(known))}."
        )


def _givers(hook: HookCaller) -> str:
    """The plugins that implement a hook; most often one."""
    return " or ".join(f"plugin {found.plugin_name!r}" for found in hook.get_hookimpls())
