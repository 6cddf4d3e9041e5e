"""A distilled small denoiser between undistilled large steps ("LDL"), each with its own guidance.

The large one is guided as the call says; the small one was distilled without guidance and is answered without it.
FlowBlending (arXiv 2512.24724) calls the distilled small model D.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, StackError, hookimpl
from flowblend_plugins.stack import is_guided
from flowblend_plugins.traits import Family

from .distilled_weights import DistilledWeights, choose_sources, read_weights, weights_on
from .guidance import UnguidedDenoiser, branch_order


@dataclass(frozen=True, kw_only=True)
class DistilledSmall(Adapter):
    """Put few-step weights on the small denoiser alone and turn guidance off for it alone.

    The sampler and its steps are the pipeline's, or those of a solver adapter beside this one.

    Args:
        small: the few-step weights: a hub id, folder or file; ``"as_loaded"`` if the small denoiser that was loaded is
            distilled already; ``None`` for those that the registered pair names.
        distilled_steps: for how many steps they were distilled: which of the pair's are meant.
        lora_scale: strength of a LoRA.
    """

    small: str | None = None
    distilled_steps: int = 8
    lora_scale: float = 1.0

    name: ClassVar[str] = "distilled_small"
    suggested: ClassVar[tuple[str, ...]] = ("distilled_small", "distilled_small(distilled_steps=4)")
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        family=Family.DISTILLED_SAMPLER, wraps="weights", denoiser_kinds=frozenset({"transformer"})
    )

    def __post_init__(self) -> None:
        if self.distilled_steps < 1:
            raise ValueError(f"distilled_steps={self.distilled_steps}: expected at least 1")
        if not self.lora_scale > 0.0:
            raise ValueError(f"lora_scale={self.lora_scale}: expected a number above 0")

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[AttachedDistilledSmall]:
        if "S" not in target.denoisers:
            raise StackError(
                f"{self.name!r}: this blend has no small denoiser. Give it one, or leave {self.name!r} out."
            )
        sources = choose_sources(self.name, {"S": self.small}, self.distilled_steps, target)
        weights = read_weights(self.name, sources, target)
        with weights_on(weights, target, self.lora_scale):
            attached = AttachedDistilledSmall(self.name, weights, target)
            try:
                yield attached
            finally:
                attached.unguided.take_off()


class AttachedDistilledSmall:
    """Keeps guidance off for the small denoiser in every guided call."""

    def __init__(self, name: str, weights: Mapping[str, DistilledWeights], target: AttachTarget) -> None:
        self._name = name
        self._weights = weights
        self._target = target
        self.unguided = UnguidedDenoiser(target.denoisers["S"], target.trace)

    @hookimpl
    def flowblend_configure_generation(self, pipeline: Any, call_arguments: dict[str, Any]) -> None:
        for of_one in self._weights.values():
            of_one.check_in_use(self._target, self._name)
        if not is_guided(pipeline, call_arguments):
            return
        order = branch_order(pipeline)
        if "uncond" not in order or "cond" not in order or order.index("uncond") < order.index("cond"):
            how = f"as {', '.join(order)}" if order else "without saying which branch it is"
            raise StackError(
                f"{self._name!r} turns guidance off for the small denoiser alone, which takes a pipeline that calls "
                f"its denoiser for cond and then for uncond, and {type(pipeline).__name__} calls it {how}. Call it "
                "with guidance_scale=1.0, or use 'distilled' on both denoisers."
            )
        if getattr(self._target.denoisers["S"], "_compiled_call_impl", None) is not None:
            raise StackError(
                f"{self._name!r}: the small denoiser was compiled as a whole, which would freeze whether guidance is "
                "off. Compile its blocks instead: small.compile_repeated_blocks()."
            )
        self.unguided.put_on()

    @hookimpl
    def flowblend_generation_finished(self) -> None:
        if self.unguided.num_spared:
            self._target.trace.note(
                f"{self._name}: guidance is off for S; {self.unguided.num_spared} unconditional calls of it were "
                "answered with its conditional output"
            )
        self.unguided.take_off()
