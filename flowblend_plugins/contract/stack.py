"""A stack of adapters on one pipeline: reading the facts that it is judged by off the pipeline and the call."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..schedule import StageSchedule
from .adapter import Adapter
from .traits import Composition, Reason, StackSetting, Verdict
from .verdict import judge


def setting_of(pipe: Any, slot: str, schedule: StageSchedule, reentry: str) -> StackSetting:
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
        branches_called_apart=_branches_called_apart(pipe),
    )


def judge_adapters(adapters: Sequence[Adapter], pipe: Any, setting: StackSetting) -> Verdict:
    """The verdict on a stack: from traits, and from the obstacles each adapter sees on this pipeline."""
    obstacles = [
        Reason(Composition.REFUSED, f"{adapter.name!r}: {found}", remedy)
        for adapter in adapters
        for found, remedy in adapter.obstacles(pipe)
    ]
    return judge([(adapter.name, adapter.traits) for adapter in adapters], setting, obstacles)


def judge_call(adapters: Sequence[Adapter], setting: StackSetting, pipe: Any, arguments: Mapping[str, Any]) -> Verdict:
    """The verdict once a call has said how many steps it takes and whether it guides.

    Args:
        setting: what was known when the stack was attached.
        arguments: keyword arguments of the call; those left out have the defaults of the pipeline's ``__call__``.
    """
    values = _with_defaults(pipe, arguments)
    known = dataclasses.replace(
        setting, guidance=is_guided(pipe, arguments), num_inference_steps=values.get("num_inference_steps")
    )
    return judge([(adapter.name, adapter.traits) for adapter in adapters], known)


def is_guided(pipe: Any, arguments: Mapping[str, Any]) -> bool | None:
    """Whether a call guides without a classifier; ``None`` where the pipeline has no such argument."""
    values = _with_defaults(pipe, arguments)
    # Where there is a true_cfg_scale (HunyuanVideo), guidance_scale is but an input of a guidance-distilled denoiser.
    scale = values.get("true_cfg_scale", values.get("guidance_scale"))
    return None if scale is None else scale > 1.0


def _with_defaults(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(type(pipe).__call__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return defaults | dict(arguments)


def _class_names(instance: Any) -> tuple[str, ...]:
    # A class that FlowBlending swapped in has its base's name, so it appears once.
    return tuple(dict.fromkeys(cls.__name__ for cls in type(instance).__mro__))


def _branches_called_apart(pipe: Any) -> bool | None:
    """Read off the cache contexts in the pipeline's source; ``None`` where it opens none."""
    return _opens_uncond_context(inspect.unwrap(type(pipe).__call__))


@functools.lru_cache(maxsize=64)
def _opens_uncond_context(call: Any) -> bool | None:
    try:
        source = inspect.getsource(call)
    except (OSError, TypeError):  # no source on this machine
        return None
    names = set(re.findall(r"""cache_context\(\s*["'](\w+)["']""", source))
    return "uncond" in names if names else None


def timestep_arguments(pipe: Any) -> tuple[str, ...]:
    """Those of ``sigmas`` and ``mu`` that a pipeline always hands to ``scheduler.set_timesteps``.

    Read off the source of its ``__call__``: ``mu`` if it is passed on at all; ``sigmas`` if the pipeline makes a
    list of its own, for one that stays ``None`` is not handed on.
    """
    return _handed_to_sampler(inspect.unwrap(type(pipe).__call__))


@functools.cache  # parsing takes milliseconds, and every solver asks
def _handed_to_sampler(call: Any) -> tuple[str, ...]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(call)))
    except (OSError, TypeError):  # no source on this machine: nothing is known, so nothing is refused
        return ()
    passed, assigned = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("set_timesteps", "retrieve_timesteps"):
                passed |= {keyword.arg for keyword in node.keywords if keyword.arg}
                passed |= {argument.id for argument in node.args if isinstance(argument, ast.Name)}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assigned.add(node.id)
    return tuple(name for name in ("sigmas", "mu") if name in passed and (name == "mu" or name in assigned))
