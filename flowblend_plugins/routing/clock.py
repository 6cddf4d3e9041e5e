"""Clock that tells at which step of its generation a denoiser call stands.

Pipelines say it in different ways, so the clock asks in order of authority: the cache context's ``step_index``; the
scheduler's ``step_index`` once it has one; the position of the pipeline's (or the call's) timestep in the scheduler's
list. ``None`` before the first step is not 0: video-to-video starts inside the list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..errors import ClockError
from ..pipelines.source import read_source
from ..types import KeywordsView, Pipeline, Scheduler


class Clock:
    """Reads one pipeline's scheduler; lists are copied from it once a generation, not once a call.

    Args:
        pipeline: the diffusers pipeline.
        scheduler: a copy of its scheduler to read instead, for a plan; ``None`` for the pipeline's own of the moment.
    """

    def __init__(self, pipeline: Pipeline, scheduler: Scheduler | None = None) -> None:
        self._pipeline = pipeline
        self._copy = scheduler
        self._leaves_out_last = read_source(pipeline).leaves_out_last_timestep
        self._source: tuple[int, int, int] | None = None
        self._timesteps_tensor: torch.Tensor | None = None
        self.timesteps: list[float] = []
        self.sigmas: list[float] | None = None

    @property
    def _scheduler(self) -> Scheduler:
        return self._pipeline.scheduler if self._copy is None else self._copy

    def refresh(self) -> bool:
        """Copy the scheduler's lists if it has set new ones. Returns whether they changed."""
        scheduler = self._scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        sigmas = getattr(scheduler, "sigmas", None)
        # Tensors made under inference_mode keep no version.
        version = timesteps._version if isinstance(timesteps, torch.Tensor) and not timesteps.is_inference() else 0
        # The tensors are held below, so an id cannot come back for another tensor.
        source = (id(timesteps), id(sigmas), version)
        if source == self._source:
            return False
        if timesteps is None or len(timesteps) == 0:
            raise ClockError(
                f"{type(scheduler).__name__} has no timesteps when the denoiser is called. FlowBlending needs a "
                "pipeline that calls scheduler.set_timesteps before its denoising loop."
            )
        self._source = source
        self._held = (timesteps, sigmas)
        self._timesteps_tensor = timesteps if isinstance(timesteps, torch.Tensor) else None
        self.timesteps = [float(t) for t in (timesteps.tolist() if self._timesteps_tensor is not None else timesteps)]
        if self._leaves_out_last:
            self.timesteps.pop()
        self.sigmas = _sigmas(scheduler, sigmas, self.timesteps)
        return True

    def forget(self) -> None:
        """Drop the copied lists (between generations)."""
        self._source = None
        self._held = None
        self._timesteps_tensor = None

    def read(self, context: KeywordsView | None, timestep: object) -> int:
        """Index of the current call in the scheduler's full list of timesteps.

        Args:
            context: keyword arguments of the cache context the call stands in, if any.
            timestep: the timestep argument of the call, if it is known already.

        Raises:
            ClockError: nothing the pipeline shows gives the position.
        """
        if context is not None:
            index = context.get("step_index")
            if index is not None:
                return index
        scheduler = self._pipeline.scheduler
        index = getattr(scheduler, "step_index", None)
        if index is None:
            index = getattr(scheduler, "begin_index", None)  # where step_index will start
        if index is not None:
            return index
        current = getattr(self._pipeline, "_current_timestep", None)
        for candidate in (current, timestep):
            index = self._position_in_memory(candidate)
            if index is not None:
                return index
        return self._position_by_value(current, timestep)

    def _position_in_memory(self, timestep: object) -> int | None:
        """Pipelines iterate over the list of timesteps, so a timestep is a view into it: exact, even with repeats."""
        tensor = self._timesteps_tensor
        if (
            tensor is None
            or not isinstance(timestep, torch.Tensor)
            or timestep.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
        ):
            return None
        offset = int(timestep.storage_offset()) - int(tensor.storage_offset())
        stride = int(tensor.stride(0))
        index, rest = divmod(offset, stride) if stride else (offset, 0)
        return index if rest == 0 and 0 <= index < len(self.timesteps) else None

    def _position_by_value(self, current: object, timestep: object) -> int:
        values = [v for v in (_as_float(current), _as_float(timestep)) if v is not None]
        # Mochi shows 1000 - t.
        train_steps = getattr(self._pipeline.scheduler.config, "num_train_timesteps", None)
        mirrored = [train_steps - values[0]] if values and train_steps else []
        for value in values + mirrored:
            for index, known in enumerate(self.timesteps):
                if math.isclose(value, known, rel_tol=1e-5, abs_tol=1e-4):
                    return index
        raise ClockError(
            f"{type(self._pipeline).__name__} with {type(self._pipeline.scheduler).__name__} calls its denoiser at "
            f"timestep {values[0] if values else 'unknown'}, which is not among the scheduler's "
            f"{len(self.timesteps)} timesteps. FlowBlending cannot tell the step; use another scheduler."
        )


def _as_float(value: object) -> float | None:
    if isinstance(value, torch.Tensor):
        return float(value.flatten()[0]) if value.numel() else None
    return float(value) if isinstance(value, (int, float)) else None


def _sigmas(
    scheduler: Scheduler, sigmas: torch.Tensor | Sequence[float] | None, timesteps: Sequence[float]
) -> list[float] | None:
    """Noise level of each timestep; for DDPM-style schedulers sqrt((1 - a) / a) of the cumulative product of alphas."""
    if sigmas is not None and len(sigmas) >= len(timesteps):
        return [float(s) for s in (sigmas.tolist() if isinstance(sigmas, torch.Tensor) else sigmas)]
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        return None
    alphas = [float(cumulative[min(max(int(t), 0), len(cumulative) - 1)]) for t in timesteps]
    return [math.sqrt((1.0 - a) / a) for a in alphas]
