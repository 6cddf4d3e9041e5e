"""The contract test is tested: it must fail an adapter that breaks any one promise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, hookimpl
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.testing import AdapterContract, PipelineSnapshot, generate, tiny_wan_pipeline


@dataclass(frozen=True, kw_only=True)
class Scaled(Adapter):
    """A right adapter: scales what the large denoiser says, through a forward hook."""

    name: ClassVar[str] = "scaled"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.FEATURE_CACHING)
    factor: float = 0.5

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"factor={self.factor}: expected a number above 0")

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[None]:
        handle = target.denoisers["L"].register_forward_hook(lambda module, args, output: (output[0] * self.factor,))
        try:
            yield
        finally:
            handle.remove()


def contract(adapter: type[Adapter]) -> AdapterContract:
    class Contract(AdapterContract):
        spec = "scaled(factor=0.25)"
        never_spec = "scaled(factor=1.0)"
        wrong_specs = ("scaled(factor=0)", "scaled(factor='1')")
        plugins = (SimpleNamespace(flowblend_register_adapters=hookimpl(lambda: [adapter])),)

        def by_hand(self, pipe: Any) -> torch.Tensor:
            pipe.transformer.register_forward_hook(lambda module, args, output: (output[0] * 0.25,))
            return generate(pipe)

    return Contract()


PROMISES = [name for name in dir(AdapterContract) if name.startswith("test_")]


@pytest.mark.parametrize("promise", PROMISES)
def test_a_right_adapter_holds(promise: str) -> None:
    getattr(contract(Scaled), promise)()


def breaking(**members: Any) -> type[Adapter]:
    return dataclass(frozen=True, kw_only=True)(type("Broken", (Scaled,), members))


@contextlib.contextmanager
def _wrong_factor(self: Scaled, target: AttachTarget) -> Iterator[None]:
    with Scaled(factor=0.75).attach(target):
        yield


@contextlib.contextmanager
def _stays_on(self: Scaled, target: AttachTarget) -> Iterator[None]:
    denoiser = target.denoisers["L"]
    denoiser.register_forward_hook(lambda module, args, output: (output[0] * self.factor,))
    yield


@contextlib.contextmanager
def _leaves_an_attribute(self: Scaled, target: AttachTarget) -> Iterator[None]:
    target.denoisers["L"].enable_scaling = True  # type: ignore[assignment]
    with Scaled.attach(self, target):
        yield


@contextlib.contextmanager
def _leaves_an_attribute_on_the_small(self: Scaled, target: AttachTarget) -> Iterator[None]:
    target.denoisers["S"].enable_scaling = True  # type: ignore[assignment]
    with Scaled.attach(self, target):
        yield


@contextlib.contextmanager
def _counts_calls(self: Scaled, target: AttachTarget) -> Iterator[None]:
    calls = 0

    def scale(module: Any, args: Any, output: Any) -> tuple[torch.Tensor]:
        nonlocal calls
        calls += 1
        return (output[0] * (self.factor if calls <= 25 else 1.0),)

    handle = target.denoisers["L"].register_forward_hook(scale)
    yield
    handle.remove()


def hooked(hook: Callable[..., Any]) -> Any:
    """An ``attach`` that puts ``hook(kept, module, output)`` on the large denoiser; ``kept`` is its memory."""

    @contextlib.contextmanager
    def attach(self: Scaled, target: AttachTarget) -> Iterator[None]:
        kept: list[torch.Tensor] = []
        handle = target.denoisers["L"].register_forward_hook(lambda module, args, output: hook(kept, module, output))
        try:
            yield
        finally:
            handle.remove()

    return attach


def _scales_the_first_video_only(kept: list[torch.Tensor], module: Any, output: Any) -> tuple[torch.Tensor]:
    return (torch.cat([output[0][:1] * 0.25, output[0][1:]]),)


def _scales_whatever_is_asked(kept: list[torch.Tensor], module: Any, output: Any) -> tuple[torch.Tensor]:
    return (output[0] * 0.25,)


def _repeats_the_first_for_ever(kept: list[torch.Tensor], module: Any, output: Any) -> tuple[torch.Tensor]:
    kept.append(output[0])
    return (kept[0],)


def _mixes_in_the_call_before(kept: list[torch.Tensor], module: Any, output: Any) -> tuple[torch.Tensor]:
    kept.append(output[0])
    return (output[0] + kept[-2] if len(kept) > 1 else output[0],)


CARRYING = AdapterTraits(family=Family.FEATURE_CACHING, carries_step_state=True)


def _accepts_anything(self: Scaled) -> None:
    pass


def _forgets_its_factor(self: Scaled) -> None:
    object.__setattr__(self, "factor", self.factor / 2)


@pytest.mark.parametrize(
    ("members", "promise"),
    [
        ({"attach": _wrong_factor}, "test_alone_it_equals_the_technique_by_hand"),
        ({"attach": hooked(_scales_the_first_video_only)}, "test_a_batch_equals_the_technique_by_hand"),
        ({"attach": hooked(_scales_whatever_is_asked)}, "test_options_that_never_reuse_equal_no_adapter"),
        (
            {"attach": hooked(_repeats_the_first_for_ever), "traits": CARRYING},
            "test_the_first_large_calls_after_the_small_stage_are_computed",
        ),
        ({"attach": hooked(_mixes_in_the_call_before)}, "test_guidance_branches_never_mix"),
        ({"attach": _leaves_an_attribute_on_the_small}, "test_disable_restores_everything"),
        ({"attach": _stays_on}, "test_disable_restores_everything"),
        ({"attach": _stays_on}, "test_a_failed_generation_leaves_nothing_behind"),
        ({"attach": _leaves_an_attribute}, "test_disable_restores_everything"),
        ({"attach": _counts_calls}, "test_second_generation_equals_the_first"),
        ({"attach": _counts_calls}, "test_a_failed_generation_leaves_nothing_behind"),
        ({"__post_init__": _accepts_anything}, "test_wrong_options_are_refused_by_name"),
        ({"suggested": ("unipc",)}, "test_suggested_settings_are_its_own"),
        ({"__post_init__": _forgets_its_factor}, "test_text_gives_the_same_adapter_again"),
    ],
)
def test_a_broken_promise_is_found(members: dict[str, Any], promise: str) -> None:
    with pytest.raises(AssertionError):
        getattr(contract(breaking(**members)), promise)()


def test_every_promise_has_an_adapter_that_breaks_it() -> None:
    marks = test_a_broken_promise_is_found.pytestmark  # type: ignore[attr-defined]
    assert {promise for _, promise in marks[0].args[1]} == set(PROMISES)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: setattr(pipe, "scheduler", type(pipe.scheduler)()),
        lambda pipe: pipe.transformer.proj_out.weight.data.add_(1e-3),
        lambda pipe: setattr(pipe.transformer, "forward", pipe.transformer.forward),
        lambda pipe: setattr(pipe.transformer.blocks[0], "cnt", 0),
        lambda pipe: setattr(pipe, "__class__", type("WanPipeline", (type(pipe),), {})),
        lambda pipe: pipe.transformer.register_forward_hook(print),
        lambda pipe: pipe.register_to_config(boundary_ratio=0.5),
        lambda pipe: pipe.scheduler.register_to_config(flow_shift=1.0),
    ],
)
def test_a_snapshot_sees_every_kind_of_change(change: Callable[[Any], Any]) -> None:
    pipe = tiny_wan_pipeline()
    snapshot = PipelineSnapshot.of(pipe)
    assert snapshot.differences(pipe) == []
    change(pipe)
    assert snapshot.differences(pipe) != []
