"""One ``DeepCacheSDHelper`` of the package DeepCache: finding it, telling it the step, taking it off again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowblend_plugins import StackError
from flowblend_plugins.types import Denoiser, Foreign, Keywords

if TYPE_CHECKING:
    from flowblend_plugins import StepContext

_KEY_PARTS = ("blocktype", "block_name", "block_i", "layer_i")
Key = tuple[str, str, int, int]
_MID_BLOCK: Key = ("mid", "mid_block", 0, 0)


def find_helper(unet: Denoiser | None) -> Foreign | None:
    """The ``DeepCacheSDHelper`` that is enabled on a denoiser; ``None`` where there is none."""
    owner = _enclosed(getattr(unet, "mid_block", None)).get("self")
    is_helper = any(cls.__name__ == "DeepCacheSDHelper" for cls in type(owner).__mro__)
    return owner if is_helper and _MID_BLOCK in getattr(owner, "function_dict", {}) else None


def names_by_key(unet: Denoiser) -> dict[Key, str]:
    """Keys and names of the modules that DeepCache has wrapped, by which it keeps their forwards."""
    keys = {}
    for name, module in unet.named_modules():
        enclosed = _enclosed(module)
        if "block_name" in enclosed:
            keys[tuple(enclosed[part] for part in _KEY_PARTS)] = name
    return keys


def _enclosed(module: object) -> Keywords:
    """Closure of the forward that was put on a module; empty where none was put on it."""
    wrapper = getattr(module, "__dict__", {}).get("forward")
    code, cells = getattr(wrapper, "__code__", None), getattr(wrapper, "__closure__", None)
    if code is None or cells is None:
        return {}
    try:
        return {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True)}
    except ValueError:  # a cell that is not filled yet: nothing of this package
        return {}


class SteeredHelper:
    """One helper that is told where each call stands, in place of searching for its timestep."""

    def __init__(self, helper: Foreign, warmup_steps: int) -> None:
        self._helper, self._own_rule = helper, helper.is_skip_step
        self._warmup_steps = warmup_steps
        self._entered: StepContext | None = None
        self._step: StepContext | None = None
        self._kept = helper.cached_output

    def enter(self, step: StepContext, reentry: str) -> None:
        entered = self._entered
        is_first = entered is None or step.generation != entered.generation or step.step_index <= entered.step_index
        if is_first or reentry == "recompute":
            self.forget()
        self._entered = step

    def forget(self) -> None:
        self._helper.start_timestep = self._step = self._entered = None
        self._helper.cached_output = self._kept = {}

    def follow(self, step: StepContext) -> None:
        """A call of the blend."""
        last = self._step
        if last is not None and (step.generation, step.step_index) == (last.generation, last.step_index):
            raise StackError(
                f"the pipeline calls denoiser {step.denoiser} more than once at step {step.step_index}, and DeepCache "
                "would answer one call from what it kept of another. Leave DeepCache out on this pipeline."
            )
        self._step = step
        self._helper.cached_output = self._kept

    def compute_apart(self) -> None:
        """A call that is not of the blend: all of it is computed, and nothing of it is kept for the blend."""
        self._step = None
        self._helper.cached_output = {}

    def is_skip_step(self, block_i: int, layer_i: int, blocktype: str = "down") -> bool:
        """Replace the helper's own step counter by the step that the router knows."""
        step, entered, helper = self._step, self._entered, self._helper
        if step is None:
            return False
        helper.cur_timestep = step.step_index
        if helper.start_timestep is None:  # as its own rule would at its first call, which may be after the warm-up
            helper.start_timestep = step.step_index
        if entered is not None and step.step_index - entered.step_index < self._warmup_steps:
            return False
        return self._own_rule(block_i, layer_i, blocktype)


@contextlib.contextmanager
def restored_forwards(unet: Denoiser) -> Iterator[None]:
    """Take off the forwards put on modules meanwhile, and restore those that were there before.

    The package's own ``disable()`` leaves a ``forward`` on every module that it has had its hands on.
    """
    modules = [module for module in unet.modules() if module is not unet]
    before = [module.__dict__.get("forward") for module in modules]
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is not None:
                module.forward = forward
            else:
                module.__dict__.pop("forward", None)


@contextlib.contextmanager
def left_as_found(helper: Foreign) -> Iterator[None]:
    found: Keywords = {name: helper.__dict__.get(name) for name in ("cur_timestep", "start_timestep", "cached_output")}
    found["cached_output"] = dict(found["cached_output"])
    try:
        yield
    finally:
        helper.__dict__.update(found)
