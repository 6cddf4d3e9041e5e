"""The plugin contract: every hook the package calls, in the order in which a user meets them.

Register a module or object that implements any of these through the entry-point group ``flowblend_plugins``, and mark
each implementation with ``flowblend_plugins.hookimpl``. An implementation may leave out arguments it does not need.
No hook runs inside transformer blocks or compiled graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from .contract.adapter import Adapter
from .contract.call import DenoiserCall
from .contract.markers import hookspec
from .pairs.preset import PairPreset
from .step import StepContext
from .types import Keywords, Output, Pipeline

if TYPE_CHECKING:  # command lines and tensors are named here, not needed here
    import numpy as np
    import torch
    import typer
    from numpy.typing import NDArray

    from .trace.trace import Trace

Metric = Callable[["NDArray[np.float32]", "NDArray[np.float32]"], float]


@hookspec
def flowblend_register_adapters() -> Iterable[type[Adapter]]:  # type: ignore[empty-body]
    """Adapter classes that this plugin contributes; their ``name`` is what users write."""


@hookspec
def flowblend_register_pairs() -> Iterable[PairPreset]:  # type: ignore[empty-body]
    """Pairs of denoisers that ``--pair`` knows by name."""


@hookspec
def flowblend_register_metrics() -> Mapping[str, Metric]:  # type: ignore[empty-body]
    """Named functions of (video, reference video), arrays ``[F, H, W, 3]`` in 0..1, that the matrix reports."""


@hookspec
def flowblend_register_commands(app: typer.Typer) -> None:
    """Add commands to the ``flowblend`` command line."""


@hookspec
def flowblend_adopt(pipeline: Pipeline) -> Iterable[Adapter]:  # type: ignore[empty-body]
    """Adapters for accelerations that the user put on this pipeline, before enabling or since; they join the stack."""


@hookspec
def flowblend_configure_generation(pipeline: Pipeline, call_arguments: Keywords) -> None:
    """Change a pipeline call before it sets its timesteps; ``call_arguments`` are its keyword arguments, mutable."""


@hookspec(firstresult=True)
def flowblend_route(step: StepContext) -> str | None:
    """Overrule the schedule for one denoiser call by returning a denoiser's letter; ``None`` leaves it."""


@hookspec(firstresult=True)
def flowblend_answer(call: DenoiserCall) -> Output:
    """Answer one denoiser call with the output of any denoisers that ``call`` runs, or of none; ``None`` leaves it."""


@hookspec
def flowblend_stage_entered(step: StepContext, denoiser: torch.nn.Module, reentry: str) -> None:
    """A denoiser is about to answer after steps it did not see (or at the first step): state kept for it is stale."""


@hookspec
def flowblend_denoiser_called(step: StepContext, denoiser: torch.nn.Module, outcome: str, time_ms: float) -> None:
    """A denoiser has answered; ``outcome`` says whether its work was ``compute``, ``reuse`` or ``predict``."""


@hookspec
def flowblend_generation_finished(pipeline: Pipeline, trace: Trace, error: BaseException | None) -> None:
    """A pipeline call ended, with its error if one was raised; ``trace`` holds what ran."""
