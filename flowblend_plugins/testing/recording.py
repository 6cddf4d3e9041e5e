"""A plugin that hears everything and changes nothing."""

from __future__ import annotations

from torch import nn

from ..contract.call import DenoiserCall
from ..contract.markers import hookimpl
from ..step import StepContext
from ..trace.trace import Trace
from ..types import Keywords, Pipeline


class RecordingPlugin:
    """A plugin that changes nothing and keeps every hook call: ``calls`` is a list of (hook name, arguments)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Keywords]] = []

    def of(self, hook: str) -> list[Keywords]:
        """The arguments of every call of one hook, in order."""
        return [arguments for name, arguments in self.calls if name == hook]

    @hookimpl
    def flowblend_register_adapters(self) -> None:
        self.calls.append(("flowblend_register_adapters", {}))

    @hookimpl
    def flowblend_register_pairs(self) -> None:
        self.calls.append(("flowblend_register_pairs", {}))

    @hookimpl
    def flowblend_register_metrics(self) -> None:
        self.calls.append(("flowblend_register_metrics", {}))

    @hookimpl
    def flowblend_register_commands(self, app: object) -> None:
        self.calls.append(("flowblend_register_commands", {"app": app}))

    @hookimpl
    def flowblend_adopt(self, pipeline: Pipeline) -> None:
        self.calls.append(("flowblend_adopt", {"pipeline": pipeline}))

    @hookimpl
    def flowblend_configure_generation(self, pipeline: Pipeline, call_arguments: Keywords) -> None:
        self.calls.append(
            ("flowblend_configure_generation", {"pipeline": pipeline, "call_arguments": dict(call_arguments)})
        )

    @hookimpl
    def flowblend_route(self, step: StepContext) -> None:
        self.calls.append(("flowblend_route", {"step": step}))

    @hookimpl
    def flowblend_answer(self, call: DenoiserCall) -> None:
        self.calls.append(("flowblend_answer", {"call": call}))

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext, denoiser: nn.Module, reentry: str) -> None:
        self.calls.append(("flowblend_stage_entered", {"step": step, "denoiser": denoiser, "reentry": reentry}))

    @hookimpl
    def flowblend_denoiser_called(self, step: StepContext, denoiser: nn.Module, outcome: str, time_ms: float) -> None:
        arguments = {"step": step, "denoiser": denoiser, "outcome": outcome, "time_ms": time_ms}
        self.calls.append(("flowblend_denoiser_called", arguments))

    @hookimpl
    def flowblend_generation_finished(self, pipeline: Pipeline, trace: Trace, error: BaseException | None) -> None:
        arguments = {"pipeline": pipeline, "trace": trace, "error": error}
        self.calls.append(("flowblend_generation_finished", arguments))
