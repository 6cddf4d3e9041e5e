"""The function that users call: ``enable()`` puts FlowBlending on a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from .blend import Blend, DenoiserSource
from .calibration.calibration import Calibration
from .calibration.guard import CalibrationGuard
from .contract.adapter import Adapter
from .errors import ScheduleError
from .schedule import AUTO, StageSchedule
from .types import KeywordsView, Pipeline


def enable(
    pipe: Pipeline,
    small: DenoiserSource | None = None,
    schedule: str | StageSchedule = "LSL",
    *,
    early: float | None = None,
    late: float | None = None,
    calibration: str | Path | Calibration | None = None,
    adapters: Iterable[str | Adapter] = (),
    reentry: str = "recompute",
    denoisers: Mapping[str, DenoiserSource] | None = None,
    plugins: Iterable[object] = (),
    idle: str = "keep",
    small_options: KeywordsView | None = None,
) -> Blend:
    """Let a small denoiser of the same family answer part of a pipeline's steps (FlowBlending, arXiv 2512.24724).

    The pipeline is then called as always. The result is also a context manager that disables at its end.

    Args:
        pipe: a diffusers pipeline with a ``transformer`` or ``unet``: the large denoiser, ``L``.
        small: the small denoiser, ``S``: a hub id, a folder (of a pipeline or of a denoiser), a loaded denoiser or a
            loaded pipeline. Not needed where the schedule never calls it.
        schedule: a name (``"LSL"``), runs (``"L:20,S:20,L:10"``), sigma bounds (``"L>=0.9,S>=0.4,L"``), a
            :class:`StageSchedule`, or ``"auto"``: large, small, large at the boundaries of a calibration.
        early, late: fractions of the steps for a schedule by name; .4 and .2 where not given.
        calibration: for ``"auto"``, the file that ``flowblend calibrate boundaries`` wrote. It is refused for another
            pair, solver or number of steps than its own, the latter when the pipeline is called.
        adapters: accelerations to stack, as ``"name(option=value)"`` or adapter objects.
        reentry: ``"recompute"`` lets a denoiser that returns forget what it had cached, ``"keep"`` does not.
        denoisers: further denoisers by capital letter, for schedules over more than two. On a Wan 2.2 pipeline ``L``
            is its high-noise expert and its low-noise one is called by naming it here.
        plugins: plugin objects for this pipeline alone, beside the installed ones.
        idle: where denoisers are that do not answer: ``"keep"`` leaves them, ``"cpu"`` keeps them on the CPU, so that
            never two are on the GPU, and ``"prefetch"`` brings the next one while the last step before it is computed.
        small_options: where ``small`` is a hub id or folder: keyword arguments for its ``from_pretrained``
            (``quantization_config=...``), and ``storage_dtype=`` for diffusers' layerwise casting.

    Returns:
        The :class:`Blend`: its ``trace``, and ``disable()``.

    Raises:
        PairError, ScheduleError, StackError, AdapterError, PluginError, RoutingError: with what was asked, what was
            found and what to do. The pipeline is then what it was before.
    """
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = Calibration.load(calibration)
    if calibration is not None and isinstance(schedule, str) and schedule.lower() == AUTO:
        if early is not None or late is not None:
            raise ScheduleError('schedule="auto" has the boundaries of its calibration. Leave early= and late= out.')
        schedule = calibration.schedule
    elif calibration is not None:
        raise ScheduleError(f'calibration= goes with schedule="auto", but the schedule is {schedule!r}. Leave one out.')
    elif isinstance(schedule, str):
        schedule = StageSchedule.parse(schedule, early, late)
    elif early is not None or late is not None:
        raise ScheduleError("early= and late= go with a schedule by name; this StageSchedule has its own boundaries.")
    guards = () if calibration is None else (CalibrationGuard(calibration),)
    return Blend(pipe, small, schedule, adapters, reentry, denoisers or {}, plugins, guards, idle, small_options or {})
