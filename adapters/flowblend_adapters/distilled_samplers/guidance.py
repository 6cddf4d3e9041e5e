"""Guidance off: for a whole call, or for one denoiser of a guided call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from flowblend_plugins import StackError
from flowblend_plugins.pipelines.source import read_source
from flowblend_plugins.types import Args, Denoiser, Keywords, KeywordsView, Output, Pipeline

if TYPE_CHECKING:  # listing plugins should not pay for torch
    from flowblend_plugins.trace.reporter import CallReporter


def guidance_argument(pipe: Pipeline) -> str | None:
    """The argument of a pipeline call that guides without a classifier; ``None`` where it has none."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return next((name for name in ("true_cfg_scale", "guidance_scale") if name in parameters), None)


def set_guidance(name: str, pipe: Pipeline, call_arguments: Keywords, scale: float) -> None:
    """Give a call the guidance scale that adapter ``name`` needs.

    Raises:
        StackError: the call gives another.
    """
    argument = guidance_argument(pipe)
    if argument is None:
        return
    for given in (argument, f"{argument}_2"):
        asked = call_arguments.get(given)
        if asked is not None and asked != scale and max(asked, scale) > 1.0:
            raise StackError(
                f"the call of {type(pipe).__name__} gives {given}={asked:g}, and {name!r} samples with {scale:g}"
                f"{' (guidance off)' if scale <= 1.0 else ''}. Leave it out of the call, or leave out {name!r}."
            )
    call_arguments[argument] = scale


def guidance_obstacle(pipe: Pipeline) -> str | None:
    """Reason that guidance cannot be turned off for one denoiser alone; ``None`` where it can."""
    source = read_source(pipe)
    order = source.branches
    if order[:2] == ("cond", "uncond") or (order == ("cond_uncond",) and source.batches_uncond_first):
        return None
    return f"calls it as {', '.join(order)}" if order else "calls it without saying for which branch"


class UnguidedDenoiser:
    """Answers the unconditional branch of one denoiser with its conditional one, which turns guidance off for it.

    Then ``uncond + scale * (cond - uncond)`` is cond to the last bit, and the second branch is not computed: a call of
    its own is answered with the output of the one before, and of a batch of both only the conditional half is run.

    Args:
        denoiser: the one without guidance.
        trace: of the blend; says which branch a call is.
    """

    def __init__(self, denoiser: Denoiser, trace: CallReporter) -> None:
        self._denoiser = denoiser
        self._trace = trace
        self._cond: tuple[int, Output] | None = None
        self._beneath: Callable[..., Output] | None = None
        self._ours: Callable[..., Output] | None = None
        self.num_spared = 0

    def put_on(self) -> None:
        """Before a generation: model offloading takes a denoiser's forward apart at the end of each."""
        forward = self._denoiser.forward
        self._beneath = vars(self._denoiser).get("forward")
        self.num_spared, self._cond = 0, None

        @functools.wraps(forward)
        def unguided(*args: object, **kwargs: object) -> Output:
            return self._answer(forward, args, kwargs)

        self._ours = self._denoiser.forward = unguided

    def take_off(self) -> None:
        """After a generation; nothing is left where somebody else has put another forward in its place."""
        if vars(self._denoiser).get("forward") is self._ours and self._ours is not None:
            if self._beneath is None:
                del self._denoiser.forward
            else:
                self._denoiser.forward = self._beneath
        self._ours = self._beneath = self._cond = None
        self.num_spared = 0

    def _answer(self, forward: Callable[..., Output], args: Args, kwargs: KeywordsView) -> Output:
        step = self._trace.step
        if step is None:
            return forward(*args, **kwargs)
        if step.branch == "cond_uncond":
            return self._answer_batch(forward, args, kwargs)
        if step.branch == "uncond" and self._cond is not None and self._cond[0] == step.step_index:
            self._trace.report_outcome("reuse")
            self.num_spared += 1
            return self._cond[1]
        output = forward(*args, **kwargs)
        self._cond = (step.step_index, output) if step.branch == "cond" else None
        return output

    def _answer_batch(self, forward: Callable[..., Output], args: Args, kwargs: KeywordsView) -> Output:
        """The second, conditional half of a batch alone, given for both."""
        import torch

        batch = (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).shape[0]

        def half(value: object) -> object:
            if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == batch:
                return value[batch // 2 :]
            return value

        args, kwargs = tuple(map(half, args)), {name: half(value) for name, value in kwargs.items()}
        self._trace.report_inputs(args, kwargs)
        self.num_spared += 1
        output = forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (torch.cat([output[0], output[0]]), *output[1:])
        output.sample = torch.cat([output.sample, output.sample])
        return output
