"""Any sequence of enabling, disabling, generating and failing ends where it began."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import flowblend_plugins as fb
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.oracles import swapped
from tests.exactness.pipelines import FAMILIES
from tests.exactness.test_undo import Stumble, stumble_at_call

WAN = FAMILIES["wan"]
STEPS = 4
SCHEDULES = {"LLL": "LLLL", "SSS": "SSSS", "LSL": "LLSL", "SLL": "SSLL", "L:1,S:2,L:1": "LSSL", "S:1,L:3": "SLLL"}


class Sequence(RuleBasedStateMachine):
    """A pipeline, a second one that shares its large denoiser, and what each must give at any moment."""

    blend: fb.Blend | None = None
    schedule = "LLL"

    @initialize(is_cached=st.booleans())
    def start(self, is_cached: bool) -> None:
        self.is_cached = is_cached
        self.pipe, self.small, self.other = WAN.pipe(), WAN.make_small(), WAN.pipe("euler")
        self.other.transformer = self.pipe.transformer
        if is_cached:
            self.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
        self.plain, self.plain_other = self.run(self.pipe), self.run(self.other)
        self.before = snapshot(self.pipe, self.small)
        self.expected: dict[str, torch.Tensor] = {}

    def run(self, pipe: Any, **overrides: Any) -> torch.Tensor:
        return WAN.run(pipe, STEPS, **overrides)

    def expectation(self) -> torch.Tensor:
        """With a cache there is no oracle from elsewhere: the first generation of a schedule stands for all later."""
        if self.blend is None:
            return self.plain
        if self.schedule not in self.expected:
            if self.is_cached:
                self.expected[self.schedule] = self.run(self.pipe)
            else:
                twin = WAN.pipe()
                denoisers = {"L": twin.transformer, "S": WAN.make_small()}
                self.expected[self.schedule] = swapped(
                    WAN, twin, denoisers, SCHEDULES[self.schedule], num_inference_steps=STEPS
                )
        return self.expected[self.schedule]

    @precondition(lambda self: self.blend is None)
    @rule(schedule=st.sampled_from(sorted(SCHEDULES)))
    def enable(self, schedule: str) -> None:
        self.blend, self.schedule = fb.enable(self.pipe, self.small, schedule), schedule

    @rule()
    def enable_wrongly(self) -> None:
        with pytest.raises(fb.FlowBlendError):
            fb.enable(self.pipe, self.small, "L:1,S:0")
        with pytest.raises(fb.FlowBlendError):
            fb.enable(self.pipe, schedule="LXL")

    @precondition(lambda self: self.blend is not None)
    @rule()
    def enable_again(self) -> None:
        for pipe in (self.pipe, self.other):
            with pytest.raises(fb.RoutingError):
                fb.enable(pipe, self.small)

    @precondition(lambda self: self.blend is not None)
    @rule(num_times=st.integers(1, 2))
    def disable(self, num_times: int) -> None:
        assert self.blend is not None
        for _ in range(num_times):
            self.blend.disable()
        self.blend = None

    @rule()
    def generate(self) -> None:
        assert torch.equal(self.run(self.pipe), self.expectation())

    @rule()
    def generate_elsewhere(self) -> None:
        assert torch.equal(self.run(self.other), self.plain_other)

    @precondition(lambda self: self.blend is not None)
    @rule(letter=st.sampled_from("LS"), call=st.integers(1, 8))
    def fail(self, letter: str, call: int) -> None:
        assert self.blend is not None
        expected = self.expectation()
        handle = stumble_at_call(self.blend.denoisers[letter], call)
        try:
            assert torch.equal(self.run(self.pipe), expected)
        except Stumble:
            pass
        finally:
            handle.remove()

    @rule(at=st.integers(0, STEPS - 1))
    def interrupt(self, at: int) -> None:
        def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = step == at
            return tensors

        assert self.run(self.pipe, callback_on_step_end=stop).isfinite().all()

    @precondition(lambda self: hasattr(self, "pipe"))
    @invariant()
    def no_trace_is_left_while_disabled(self) -> None:
        assert (snapshot(self.pipe, self.small) == self.before) == (self.blend is None)

    def teardown(self) -> None:
        if hasattr(self, "pipe"):
            if self.blend is not None:
                self.blend.disable()
            assert snapshot(self.pipe, self.small) == self.before
            assert torch.equal(self.run(self.pipe), self.plain)
            assert torch.equal(self.run(self.other), self.plain_other)


Sequence.TestCase.settings = settings(max_examples=20, stateful_step_count=12)
TestSequence = Sequence.TestCase
