"""A cache that this package has never heard of: declaring what it sets is all that its plugin has to do."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.testing import generate, tiny_wan_pipeline
from tests.adapters.feature_caching.native_cache_contract import small_wan


class NapCache:
    """Answers every second call with the last output; one state, on the denoiser, as such scripts have it."""

    @staticmethod
    def switch_on(denoiser: Any, owner: Any = None) -> None:
        owner = denoiser if owner is None else owner
        owner.nap_enabled, owner.nap_output, owner.nap_calls = True, None, 0
        plain = type(denoiser).forward

        def nap_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.nap_calls += 1
            if self.nap_calls % 2 or self.nap_output is None:
                self.nap_output = plain(self, *args, **kwargs)
            return self.nap_output

        denoiser.forward = types.MethodType(nap_forward, denoiser)

    @staticmethod
    def switch_off(denoiser: Any) -> None:
        for name in ("nap_enabled", "nap_output", "nap_calls", "forward"):
            denoiser.__dict__.pop(name, None)


class Adopted:
    """At work: naps are forgotten whenever the denoiser enters."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser

    @fb.hookimpl
    def flowblend_stage_entered(self, denoiser: Any) -> None:
        if denoiser is self._denoiser:
            denoiser.nap_output, denoiser.nap_calls = None, 0


@dataclass(frozen=True, kw_only=True)
class AdoptedNap(fb.Adapter):
    """A nap cache that was found on a pipeline."""

    name: ClassVar[str] = "adopted_nap"
    suggested: ClassVar[tuple[str, ...]] = ()
    traits: ClassVar[fb.AdapterTraits] = fb.AdapterTraits(
        family=Family.FEATURE_CACHING,
        carries_step_state=True,
        tells_branches_apart=False,
        wraps="forward",
        sets=frozenset({"nap_enabled"}),
    )

    @contextlib.contextmanager
    def attach(self, target: fb.AttachTarget) -> Iterator[Adopted]:
        yield Adopted(target.denoisers["L"])


class NapPlugin:
    """The plugin of the made-up package."""

    @fb.hookimpl
    def flowblend_register_adapters(self) -> list[type[fb.Adapter]]:
        return [AdoptedNap]


class AdoptingNapPlugin(NapPlugin):
    @fb.hookimpl
    def flowblend_adopt(self, pipeline: Any) -> list[fb.Adapter]:
        return [AdoptedNap()] if getattr(pipeline.transformer, "nap_enabled", False) else []


def blend_of(pipe: Any, plugin: Any) -> fb.Blend:
    return fb.enable(pipe, small_wan(), "L:4,S:1,L:5", plugins=[plugin])


def test_it_is_adopted_whether_it_comes_first_or_later() -> None:
    first, then = tiny_wan_pipeline(), tiny_wan_pipeline()
    NapCache.switch_on(first.transformer)
    with blend_of(first, AdoptingNapPlugin()) as blend:
        expected = generate(first, guidance_scale=1.0)
        assert [adapter.name for adapter in blend.adapters] == ["adopted_nap"]
    with blend_of(then, AdoptingNapPlugin()) as blend:
        blended = generate(then, guidance_scale=1.0)
        NapCache.switch_on(then.transformer)
        assert torch.equal(generate(then, guidance_scale=1.0), expected)
        assert [adapter.name for adapter in blend.adapters] == ["adopted_nap"]
        with pytest.raises(fb.StackError, match="keeps one state for both guidance branches"):
            generate(then)
        NapCache.switch_off(then.transformer)
        assert torch.equal(generate(then, guidance_scale=1.0), blended)
        assert blend.adapters == ()


def test_declared_and_not_adopted_it_is_refused_whether_it_comes_first_or_later() -> None:
    pipe = tiny_wan_pipeline()
    with blend_of(pipe, NapPlugin()):
        blended = generate(pipe)
        NapCache.switch_on(pipe.transformer)
        for _ in range(2):
            with pytest.raises(fb.StackError, match=r"nap_enabled is set.*'adopted_nap'.*Switch it off"):
                generate(pipe)
        NapCache.switch_off(pipe.transformer)
        assert torch.equal(generate(pipe), blended)
    NapCache.switch_on(pipe.transformer)
    with pytest.raises(fb.StackError, match="nap_enabled is set"):
        blend_of(pipe, NapPlugin())


def test_an_attribute_that_it_sets_on_the_class_is_noticed() -> None:
    pipe = tiny_wan_pipeline()
    kind = type(pipe.transformer)
    with blend_of(pipe, NapPlugin()):
        generate(pipe)
        type(pipe.transformer).nap_enabled = True
        try:
            assert kind.nap_enabled
            with pytest.raises(fb.StackError, match="nap_enabled is set"):
                generate(pipe)
        finally:
            del kind.nap_enabled
        assert generate(pipe).isfinite().all()
