"""A stack of adapters on one pipeline: reading the facts that it is judged by off the pipeline and the call."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from ..extras import how_to_install, is_installed
from ..pipelines.source import read_source
from ..schedule import StageSchedule
from ..types import Keywords, KeywordsView, Pipeline
from .adapter import Adapter
from .traits import AdapterTraits, Composition, Reason, StackSetting, Verdict
from .verdict import judge


def setting_of(pipe: Pipeline, slot: str, schedule: StageSchedule, reentry: str) -> StackSetting:
    """The facts that are known before the pipeline is called.

    Args:
        pipe: the diffusers pipeline.
        slot: ``"transformer"`` or ``"unet"``, where its denoiser is.
        schedule: the stage schedule in force.
        reentry: ``"recompute"`` or ``"keep"``.
    """
    return StackSetting(
        denoiser_kind=slot,
        denoiser_classes=_class_names(getattr(pipe, slot)),
        pipeline_classes=_class_names(pipe),
        denoiser_changes=len(schedule.letters) > 1,
        denoiser_order=tuple(run.denoiser for run in schedule.runs),
        reentry=reentry,
        branches_called_apart=read_source(pipe).branches_called_apart,
    )


def judge_adapters(
    adapters: Sequence[Adapter],
    pipe: Pipeline,
    setting: StackSetting,
    registered: Iterable[type[Adapter]] = (),
    found_on_pipe: Iterable[Reason] = (),
) -> Verdict:
    """The verdict on a stack: from traits, and from the obstacles each adapter sees on this pipeline.

    Args:
        adapters: the stack.
        pipe: the diffusers pipeline.
        setting: what :func:`setting_of` says of it.
        registered: adapter classes that a refusal may name as a way out.
        found_on_pipe: further reasons, found on the pipeline itself.
    """
    registered = tuple(registered)
    obstacles = [
        *found_on_pipe,
        *(
            Reason(Composition.REFUSED, f"{adapter.name!r}: {found}", remedy)
            for adapter in adapters
            for found, remedy in _missing_package(adapter) or _obstacles(adapter, pipe, registered)
        ),
    ]
    return judge(_facts(adapters), setting, obstacles)


def _facts(adapters: Iterable[Adapter]) -> list[tuple[str, AdapterTraits]]:
    return [(adapter.name, adapter.traits_with_options()) for adapter in adapters]


def _obstacles(adapter: Any, pipe: Pipeline, registered: Sequence[type[Adapter]]) -> Iterable[tuple[str, str]]:
    takes_registered = "registered" in inspect.signature(adapter.obstacles).parameters
    return adapter.obstacles(pipe, registered=registered) if takes_registered else adapter.obstacles(pipe)


def _missing_package(adapter: Adapter) -> list[tuple[str, str]]:
    package = adapter.package
    if package is None or is_installed(package):
        return []
    return [(f"the package {package} is not installed", f"{how_to_install(package)}.")]


def judge_call(adapters: Sequence[Adapter], setting: StackSetting, pipe: Pipeline, arguments: KeywordsView) -> Verdict:
    """The verdict once a call has said how many steps it takes and whether it guides.

    Args:
        setting: what was known when the stack was attached.
        arguments: keyword arguments of the call; those left out have the defaults of the pipeline's ``__call__``.
    """
    values = _with_defaults(pipe, arguments)
    known = dataclasses.replace(
        setting, guidance=is_guided(pipe, arguments), num_inference_steps=values.get("num_inference_steps")
    )
    return judge(_facts(adapters), known)


def is_guided(pipe: Pipeline, arguments: KeywordsView) -> bool | None:
    """Whether a call guides without a classifier; ``None`` where the pipeline has no such argument."""
    values = _with_defaults(pipe, arguments)
    # Where there is a true_cfg_scale (HunyuanVideo), guidance_scale is but an input of a guidance-distilled denoiser.
    scale = values.get("true_cfg_scale", values.get("guidance_scale"))
    return None if scale is None else scale > 1.0


def _with_defaults(pipe: Pipeline, arguments: KeywordsView) -> Keywords:
    parameters = inspect.signature(type(pipe).__call__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return defaults | dict(arguments)


def _class_names(instance: object) -> tuple[str, ...]:
    # A class that FlowBlending swapped in has its base's name, so it appears once.
    return tuple(dict.fromkeys(cls.__name__ for cls in type(instance).__mro__))
