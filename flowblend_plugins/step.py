"""Position of one denoiser call: the frozen value that every hook and adapter is given."""

from __future__ import annotations

from typing import Literal, NamedTuple

from .schedule import Stage

Outcome = Literal["compute", "reuse", "predict"]
"""Work of a denoiser at one call: all of it, its cached answer, or an answer made from others."""

OUTCOMES: tuple[Outcome, ...] = ("compute", "reuse", "predict")


class StepContext(NamedTuple):
    """Position of one denoiser call in its generation (a named tuple: built once a call, so it must be cheap).

    Attributes:
        step_index: index in the sampler's full list of timesteps; video-to-video starts above 0.
        num_inference_steps: length of that list.
        sigma: noise level of the step, ``None`` where the sampler has none.
        timestep: the sampler's timestep, ``None`` where it cannot be read.
        stage: part of the trajectory by the schedule.
        denoiser: letter of the denoiser that answers (``"L"``, ``"S"``, ...).
        branch: guidance branch as the pipeline names it (``"cond"``, ``"uncond"``, ``"cond_uncond"``, ...),
            ``None`` where the pipeline does not say.
        generation: counts the pipeline's calls since it was enabled, from 0.
    """

    step_index: int
    num_inference_steps: int
    sigma: float | None
    timestep: float | None
    stage: Stage
    denoiser: str
    branch: str | None
    generation: int
