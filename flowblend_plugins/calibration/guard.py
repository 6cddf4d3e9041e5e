"""A calibration in force: it is refused in a generation of another solver or number of steps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..contract.adapter import AttachTarget
from ..contract.markers import hookimpl
from ..step import StepContext
from ..trace.reporter import CallReporter
from ..types import Keywords, Pipeline
from .calibration import Calibration


class CalibrationGuard:
    """A plugin of the blend. It looks before the first denoiser call, when adapters have set what they set."""

    _pipeline: Pipeline
    _trace: CallReporter

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._guidance_scale: float | None = None
        self._seen: int | None = None

    def check_denoisers(self, denoisers: Mapping[str, nn.Module]) -> None:
        self._calibration.refuse_other_denoisers(denoisers)

    def attach(self, target: AttachTarget) -> CalibrationGuard:
        self._pipeline, self._trace = target.pipeline, target.trace
        self._calibration.refuse_other_sampler(self._pipeline.scheduler)
        return self

    @hookimpl(trylast=True)
    def flowblend_configure_generation(self, call_arguments: Keywords) -> None:
        self._guidance_scale = call_arguments.get("guidance_scale")

    @hookimpl
    def flowblend_stage_entered(self, step: StepContext) -> None:
        if step.generation == self._seen:
            return
        self._seen = step.generation
        self._calibration.refuse_other_sampler(self._pipeline.scheduler)
        self._calibration.refuse_other_steps(step.num_inference_steps)
        calibrated = self._calibration.setting.guidance_scale
        if self._guidance_scale is not None and calibrated not in (None, self._guidance_scale):
            self._trace.note(
                f"boundaries were calibrated at guidance scale {calibrated:g}, and this is {self._guidance_scale:g}"
            )
