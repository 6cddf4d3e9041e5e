"""The measurements, in the order in which they are worth their time: each gives one JSON object."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

import flowblend_plugins as fb
from flowblend_plugins import Family
from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.manager import adapters_by_name, make_plugin_manager
from flowblend_plugins.pipelines.idle import IDLE_PLACEMENTS
from flowblend_plugins.schedule import StageSchedule
from flowblend_plugins.trace.generation import Generation
from flowblend_plugins.types import JsonObject

from .pairs import LARGE_CALL, SHORT_CALL, SMALL_CALL
from .session import NUM_STEPS, Session

SCHEDULES = ("LLL", "LSL", "LSS", "SSS")
NUM_ROUNDS = 3


class Measurement(NamedTuple):
    """One thing that is measured.

    Attributes:
        name: key of its result.
        expected_s: seconds that it is expected to take, from what was measured before it.
        run: gives the result.
    """

    name: str
    expected_s: Callable[[Session], float]
    run: Callable[[Session], JsonObject]


def weights(session: Session) -> JsonObject:
    """Parameters and bytes of both denoisers."""
    return {
        letter: {
            "num_parameters": sum(p.numel() for p in session.denoiser(letter).parameters()),
            "bytes": sum(p.numel() * p.element_size() for p in session.denoiser(letter).parameters()),
        }
        for letter in "LS"
    }


def one_round(session: Session, is_backwards: bool) -> JsonObject:
    """Every schedule and a bare forward of either denoiser, once each: a slow moment slows all of them."""
    inputs = {letter: session.inputs(letter, SMALL_CALL) for letter in "LS"}
    for letter in "LS":
        if (SMALL_CALL, letter) not in session.forward_s:
            session.forward_time(letter, inputs[letter])  # kernels are loaded and chosen
    order = ["L", "S", *SCHEDULES]
    found: JsonObject = {}
    for one in reversed(order) if is_backwards else order:
        if one in inputs:
            found[one] = session.forward_time(one, inputs[one])
            session.forward_s.setdefault((SMALL_CALL, one), found[one])
        else:
            found[one], _ = session.blended(session.schedule(one), SMALL_CALL)
    return found


def flops(session: Session) -> JsonObject:
    """FLOPs of one forward of either denoiser by size, from shapes alone."""
    return {
        size: {letter: session.flops(letter, session.inputs(letter, size)) for letter in "LS"}
        for size in (SMALL_CALL, LARGE_CALL)
    }


def routing(session: Session) -> JsonObject:
    """Routing's addition to a denoiser call: a short video of the small denoiser, plain and enabled in turn."""
    pipe, times = session.pipe_of_small, {"plain": list[float](), "enabled": list[float]()}
    session.generate(pipe, SHORT_CALL)
    for _ in range(4 * NUM_ROUNDS):
        times["plain"].append(session.machine.timed(lambda: session.generate(pipe, SHORT_CALL))[1])
        with fb.enable(pipe, None, "LLL"):
            times["enabled"].append(session.machine.timed(lambda: session.generate(pipe, SHORT_CALL))[1])
    added = [1e6 * (b - a) / NUM_STEPS for a, b in zip(times["plain"], times["enabled"], strict=True)]
    return {"added_us_per_call": added, "generation_s": times, "size": dict(session.pair.calls[SHORT_CALL])}


def forecast_step(session: Session) -> JsonObject:
    """A step that is forecast from the large denoiser's last velocities, beside one that is computed."""
    schedule = StageSchedule.parse("L:2,S:2")
    _, record = session.blended(schedule, SMALL_CALL, 4, adapters=["forecast(recall_every=0)"])
    return _by_outcome(record)


def _by_outcome(record: Generation) -> JsonObject:
    """Median milliseconds of the calls that were computed, and of those that were not."""
    computed = [call.time_ms for call in record.calls if call.outcome == "compute"]
    saved = [call.time_ms for call in record.calls if call.outcome != "compute"]
    return {
        "computed_ms": statistics.median(computed) if computed else None,
        "saved_ms": statistics.median(saved) if saved else None,
        "num_computed": len(computed),
        "num_saved": len(saved),
    }


def caches(session: Session) -> JsonObject:
    """Every cache adapter on the small denoiser: what a computed and what a reused call cost beside a plain one."""
    found: JsonObject = {"plain": _cached(session, ())}
    for adapter in adapters_by_name(make_plugin_manager()).values():
        if adapter.traits.family is not Family.FEATURE_CACHING or not adapter.suggested:
            continue
        spec = adapter.suggested[0]
        if session.machine.left_s() < session.steps_s(SMALL_CALL, 0, NUM_STEPS):
            found[spec] = {"refused": "no time was left for it."}
            continue
        try:
            found[spec] = _cached(session, (spec,))
        except FlowBlendError as error:
            found[spec] = {"refused": str(error)}
        session.machine.collect()
    return found


def _cached(session: Session, adapters: tuple[str, ...]) -> JsonObject:
    pipe = session.pipe_of_small
    with fb.enable(pipe, None, "LLL", adapters=adapters) as blend, session.machine.peak() as peak:
        session.generate(pipe, SMALL_CALL)
        assert blend.trace.last is not None
        return {**_by_outcome(blend.trace.last), "peak_bytes": peak()}


def single_forwards(session: Session) -> JsonObject:
    """Bare forwards at the greater size, three of either denoiser."""
    result: JsonObject = {"size": dict(session.pair.calls[LARGE_CALL])}
    for letter in "SL":
        inputs = session.inputs(letter, LARGE_CALL)
        with session.machine.peak() as peak:
            times = [session.forward_time(letter, inputs) for _ in range(3)]
        result[letter] = {"times_s": times, "peak_bytes": peak()}
        session.forward_s[LARGE_CALL, letter] = statistics.median(times)
    return result


def _expected_at_large_size(session: Session) -> float:
    """Attention grows with the square of the tokens, the rest with their number."""
    size, at_small = session.pair.calls[LARGE_CALL], session.pair.calls[SMALL_CALL]
    tokens = 1.0
    for key in size:
        tokens *= size[key] / at_small[key]
    return tokens**1.7 * session.steps_s(SMALL_CALL, 3, 3)


def compiled(session: Session) -> JsonObject:
    """Both denoisers compiled block by block, as diffusers does it: seconds to compile, and the same figures again."""
    backend = "inductor" if session.machine.has_gpu else "eager"  # a trial on a CPU compiles nothing
    result: JsonObject = {"backend": backend}
    try:
        for letter in "LS":
            session.denoiser(letter).compile_repeated_blocks(fullgraph=True, backend=backend)
            inputs = session.inputs(letter, SMALL_CALL)
            first = session.forward_time(letter, inputs)
            times = [session.forward_time(letter, inputs) for _ in range(NUM_ROUNDS)]
            result[letter] = {"first_s": first, "times_s": times}
        result["LSL"] = [session.blended(session.schedule("LSL"), SMALL_CALL)[0] for _ in range(2)]
    finally:
        for letter in "LS":
            for module in session.denoiser(letter).modules():
                module._compiled_call_impl = None
        torch.compiler.reset()
    return result


def placements(session: Session) -> JsonObject:
    """Peak memory and time of a large and a small step for each way to place the denoisers."""
    two_steps, device = StageSchedule.parse("L:1,S:1"), session.machine.device
    found: JsonObject = {
        f'idle="{idle}"': session.blended(two_steps, SMALL_CALL, 2, idle=idle)[0]
        for idle in (IDLE_PLACEMENTS if session.machine.has_gpu else ("keep",))
    }
    try:
        session.small.to("cpu")
        with session.machine.peak() as peak:
            _, seconds = session.machine.timed(lambda: session.generate(session.pipe, SMALL_CALL, 1))
        found["large alone"] = {"time_s": seconds, "peak_bytes": peak()}
        session.pipe.enable_model_cpu_offload(device=device)
        found["enable_model_cpu_offload()"] = session.blended(two_steps, SMALL_CALL, 2)[0]
    finally:
        session.pipe.remove_all_hooks()
        for letter in "LS":
            session.denoiser(letter).to(device)
    return found


def _expected_of_placements(session: Session) -> float:
    """The weights are copied between host and device some six times, at 5 GB a second or more."""
    num_bytes = sum(one["bytes"] for one in weights(session).values())
    return 6 * num_bytes / 5e9 + session.steps_s(SMALL_CALL, 5, 4)


MEASUREMENTS = (
    Measurement("weights", lambda session: 0.0, weights),
    Measurement("flops", lambda session: 10.0, flops),
    *(
        Measurement(
            f"round {number + 1}",
            lambda session: session.steps_s(SMALL_CALL, 17, 13),
            functools.partial(one_round, is_backwards=number % 2 == 1),
        )
        for number in range(NUM_ROUNDS)
    ),
    Measurement("routing", lambda session: 2.0, routing),
    Measurement("forecast", lambda session: session.steps_s(SMALL_CALL, 2), forecast_step),
    Measurement("720p", _expected_at_large_size, single_forwards),
    Measurement("placements", _expected_of_placements, placements),
    Measurement("compiled", lambda session: 50.0 + session.steps_s(SMALL_CALL, 11, 11), compiled),
    Measurement("caches", lambda session: 0.0, caches),
)
"""In the order of their worth, should the time not suffice."""
