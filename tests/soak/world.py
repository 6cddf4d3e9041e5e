"""One random pipeline, what is done to it, and what must be true at every moment."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

import flowblend_plugins as fb
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.pipelines import Family
from tests.soak.stacks import SCHEDULES, WORLDS, random_stack

STEPS = 5
FAULTS = (RuntimeError, KeyboardInterrupt, MemoryError, ValueError, SystemExit)


class World:
    """A pipeline, two others on its denoisers, and a second blend's pipeline on the same small denoiser.

    Attributes:
        log: what was done, in order.
    """

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.log: list[str] = []
        self.family: Family = choose.choice(WORLDS)
        self.call: dict[str, Any] = choose.choice(({}, {}, {"guidance_scale": 1.0}))
        self.small = self.family.make_small()
        self.pipes = [self.family.pipe(), self.family.pipe()]
        self.others = [self.family.pipe(), self.family.pipe()]
        setattr(self.others[0], self.family.slot, getattr(self.pipes[0], self.family.slot))
        setattr(self.others[1], self.family.slot, self.small)
        self.plain = [self.run(pipe) for pipe in self.pipes]
        self.plain_others = [self.run(other) for other in self.others]
        self.run(self.pipes[0])
        self.before = [self.snapshot(number) for number in (0, 1)]
        self.blends: list[fb.Blend | None] = [None, None]
        self.stacks: list[tuple[str, tuple[str, ...], str]] = [("", (), "")] * 2
        self.expected: list[Any] = [None, None]

    def run(self, pipe: Any, **overrides: Any) -> torch.Tensor:
        return self.family.run(pipe, STEPS, **(self.call | overrides))

    def snapshot(self, number: int) -> Any:
        return snapshot(self.pipes[number], self.small)

    # -- what may be done -----------------------------------------------------------------------------------------

    def act(self) -> None:
        """Do one thing at random and check what must hold after it."""
        actions: list[Callable[[int], None]] = [
            self.enable, self.enable, self.generate, self.generate, self.elsewhere, self.fail, self.fail,
            self.fail_in_callback, self.interrupt, self.nested, self.threaded, self.enable_wrongly, self.disable,
            self.copy,
        ]  # fmt: skip
        action, number = self.choose.choice(actions), self.choose.choice((0, 0, 1))
        self.log.append(f"{action.__name__}({number})")
        action(number)
        self.check_traces()

    def enable(self, number: int) -> None:
        if self.blends[number] is not None:
            return
        schedule, stack = self.choose.choice(SCHEDULES), random_stack(self.choose, self.family)
        reentry = self.choose.choice(("recompute", "recompute", "keep"))
        self.log[-1] += f" {schedule} {stack} {reentry}"
        before = self.snapshot(number)
        try:
            blend = fb.enable(self.pipes[number], self.small, schedule, adapters=stack, reentry=reentry)
        except fb.FlowBlendError as error:
            self.log[-1] += f" refused: {type(error).__name__}"
            assert self.snapshot(number) == before, "a refusal left a trace"
            return
        self.blends[number], self.stacks[number] = blend, (schedule, stack, reentry)
        self.expected[number] = self.on_twins(number)

    def on_twins(self, number: int) -> torch.Tensor | str:
        """What fresh objects give with the same stack: the latents, or the refusal of the call."""
        schedule, stack, reentry = self.stacks[number]
        pipe = self.family.pipe()
        with fb.enable(pipe, self.family.make_small(), schedule, adapters=stack, reentry=reentry):
            return outcome_of(lambda: self.run(pipe))

    def generate(self, number: int) -> None:
        expected = self.plain[number] if self.blends[number] is None else self.expected[number]
        result = outcome_of(lambda: self.run(self.pipes[number]))
        if isinstance(expected, str) or isinstance(result, str):
            assert expected == result, f"{result} where fresh objects give {expected}"
            return
        assert torch.equal(result, expected), f"off by {(result - expected).abs().max()}"

    def elsewhere(self, number: int) -> None:
        assert torch.equal(self.run(self.others[number]), self.plain_others[number]), "another pipeline is changed"

    def fail(self, number: int) -> None:
        """A fault anywhere inside a denoiser's forward, a sampler's step or a VAE."""
        slot = self.family.slot
        place = self.choose.choice((getattr(self.pipes[number], slot), self.small, self.pipes[number].scheduler))
        fault, at = self.choose.choice(FAULTS), self.choose.randint(1, 8)
        self.log[-1] += f" {fault.__name__} at call {at} of {type(place).__name__}"
        with failing(place, fault, at, self.choose), suppress(fault, fb.FlowBlendError):
            self.run(self.pipes[number])
        self.generate(number)

    def fail_in_callback(self, number: int) -> None:
        fault, at = self.choose.choice(FAULTS), self.choose.randrange(STEPS)

        def stumble(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == at:
                raise fault
            return tensors

        with suppress(fault, fb.FlowBlendError):
            self.run(self.pipes[number], callback_on_step_end=stumble)
        self.generate(number)

    def interrupt(self, number: int) -> None:
        at = self.choose.randrange(STEPS)

        def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = step == at
            return tensors

        with suppress(fb.FlowBlendError):
            self.run(self.pipes[number], callback_on_step_end=stop)
        self.generate(number)

    def nested(self, number: int) -> None:
        """In the middle of a generation other pipelines run, the second blend's too, and denoisers by hand."""
        at = self.choose.randrange(STEPS)

        def call_others(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == at:
                self.elsewhere(0)
                self.elsewhere(1)
                self.generate(1 - number)
            return tensors

        expected = self.plain[number] if self.blends[number] is None else self.expected[number]
        try:
            result = self.run(self.pipes[number], callback_on_step_end=call_others)
        except fb.FlowBlendError:
            return
        if isinstance(expected, torch.Tensor):
            assert torch.equal(result, expected), "what ran in a callback changed the generation"

    def threaded(self, number: int) -> None:
        """Another pipeline on the large denoiser generates at the same time in another thread."""
        results: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: results.append(self.run(self.others[0])))
        thread.start()
        try:
            self.generate(number)
        finally:
            thread.join()
        assert torch.equal(results[0], self.plain_others[0]), "another thread's pipeline is changed"

    def enable_wrongly(self, number: int) -> None:
        before = self.snapshot(number)
        wrong: tuple[dict[str, Any], ...] = (
            {"schedule": "LXL"}, {"schedule": "L:1,S:0"}, {"adapters": ["no_such_adapter"]}, {"reentry": "sometimes"},
            {"adapters": ["unipc", "dpmpp_2m"]}, {"early": 0.9, "late": 0.9}, {"small": object()},
        )  # fmt: skip
        arguments = {"small": self.small} | self.choose.choice(wrong)
        try:
            fb.enable(self.pipes[number], **arguments)
        except fb.FlowBlendError:
            assert self.snapshot(number) == before, "a refusal left a trace"
            return
        raise AssertionError(f"accepted: {arguments}")

    def disable(self, number: int) -> None:
        blend = self.blends[number]
        if blend is not None:
            self.blends[number] = None
            for _ in range(self.choose.choice((1, 2))):
                blend.disable()
        self.generate(number)

    def copy(self, number: int) -> None:
        if self.blends[number] is None:
            return
        try:
            copy.deepcopy(self.pipes[number])
        except fb.RoutingError:
            return
        raise AssertionError("an enabled pipeline was copied")

    # -- what must hold -------------------------------------------------------------------------------------------

    def check_traces(self) -> None:
        """Where nothing is enabled, nothing is different; where one blend is, the other pipeline's own parts are."""
        if self.blends == [None, None]:
            for number in (0, 1):
                differences = _differences(self.before[number], self.snapshot(number))
                assert not differences, f"disable() left: {differences[:5]}"

    def close(self) -> None:
        """Take off what is on, in either order, and check it all."""
        for number in self.choose.sample((0, 1), 2):
            self.log.append(f"disable({number}) at the end")
            self.disable(number)
        self.check_traces()
        self.elsewhere(0)
        self.elsewhere(1)


def outcome_of(function: Callable[[], torch.Tensor]) -> torch.Tensor | str:
    """What it gives, or how it is refused."""
    try:
        return function()
    except fb.FlowBlendError as error:
        return f"{type(error).__name__}: {error}"


@contextmanager
def failing(place: Any, fault: type[BaseException], at: int, choose: random.Random) -> Iterator[None]:
    """The ``at``-th call of a module deep in a denoiser, or of a sampler's ``step``, raises."""
    calls = iter(range(1, 10**6))

    def stumble(*_: Any) -> None:
        if next(calls) == at:
            raise fault

    if isinstance(place, nn.Module):
        inner = choose.choice([module for module in place.modules() if not list(module.children())])
        handle = inner.register_forward_pre_hook(stumble)
        try:
            yield
        finally:
            handle.remove()
        return
    step = place.step

    def stepping(*args: Any, **kwargs: Any) -> Any:
        stumble()
        return step(*args, **kwargs)

    place.step = stepping
    try:
        yield
    finally:
        del place.step


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
