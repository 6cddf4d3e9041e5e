"""What the router adds to one denoiser call: side by side with a plain call and with diffusers' own hooks.

The denoiser does nothing, so that all of the time is overhead; it is a real diffusers model in a real pipeline, and the
router does all it does in earnest: clock, schedule, switch, trace. The machine's other work touches every variant
alike, because generations of the variants take turns, and medians of many calls are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.cache_utils import CacheMixin
from torch import nn

import flowblend_plugins as fb

MOST_ADDED_US = 15.0
NUM_STEPS = 50
ROUNDS = 40


class NoOpBlock(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


TransformerBlockRegistry.register(NoOpBlock, TransformerBlockMetadata(return_hidden_states_index=0))


class NoOpDenoiser(ModelMixin, ConfigMixin, CacheMixin):
    """Returns its input, through two blocks that return theirs (a first-block cache needs blocks)."""

    @register_to_config
    def __init__(self, in_channels: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.transformer_blocks = nn.ModuleList([NoOpBlock(), NoOpBlock()])

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states)
        return (hidden_states,)


class NoOpPipeline(DiffusionPipeline):
    """Calls its denoiser as Wan's pipelines do, and keeps the time of every call in nanoseconds."""

    def __init__(self, transformer: NoOpDenoiser, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, num_inference_steps: int, in_cache_context: bool) -> list[int]:
        latents, text = torch.zeros(1, 4, 8), torch.zeros(1, 8, 4)
        self.scheduler.set_timesteps(num_inference_steps)
        call = in_context if in_cache_context else bare
        durations = []
        for t in self.scheduler.timesteps:
            self._current_timestep, timestep = t, t.expand(1)
            for branch in ("cond", "uncond"):
                started = time.perf_counter_ns()
                call(self.transformer, branch, latents, timestep, text)
                durations.append(time.perf_counter_ns() - started)
            latents = self.scheduler.step(latents, t, latents, return_dict=False)[0]
        return durations


def bare(denoiser: Any, branch: str, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> None:
    denoiser(
        hidden_states=latents, timestep=timestep, encoder_hidden_states=text, attention_kwargs=None, return_dict=False
    )


def in_context(denoiser: Any, branch: str, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> None:
    with denoiser.cache_context(branch):
        denoiser(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=text,
            attention_kwargs=None,
            return_dict=False,
        )


class PassOnHook(ModelHook):
    """The least a diffusers hook can do."""

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.fn_ref.original_forward(*args, **kwargs)


def plain() -> NoOpPipeline:
    pipe = NoOpPipeline(NoOpDenoiser(), FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def routed() -> NoOpPipeline:
    pipe = plain()
    fb.enable(pipe, NoOpDenoiser(), "LSL")
    return pipe


def hooked() -> NoOpPipeline:
    pipe = plain()
    HookRegistry.check_if_exists_or_initialize(pipe.transformer).register_hook(PassOnHook(), "pass_on")
    return pipe


def first_block_cached() -> NoOpPipeline:
    pipe = plain()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    return pipe


def median_call_us(pipe: NoOpPipeline, in_cache_context: bool) -> float:
    return statistics.median(pipe(NUM_STEPS, in_cache_context)) / 1e3


def added_us(measured: dict[str, list[float]], variant: str) -> list[float]:
    """What a variant adds to the plain call measured in the same turn."""
    return [time_us - plain_us for time_us, plain_us in zip(measured[variant], measured["plain"], strict=True)]


def report(measured: dict[str, list[float]], where: str) -> str:
    lines = [f"one denoiser call {where}, microseconds: median of {ROUNDS} generations (quartiles of what is added)"]
    for variant, times_us in measured.items():
        low, middle, high = statistics.quantiles(added_us(measured, variant), n=4)
        added = "" if variant == "plain" else f"   added {middle:5.1f} ({low:.1f} to {high:.1f})"
        lines.append(f"  {variant:18} {statistics.median(times_us):5.1f}{added}")
    return "\n".join(lines)


@pytest.mark.benchmark(group="a generation of 100 denoiser calls that do nothing, with FlowBlending")
@pytest.mark.parametrize("in_cache_context", [False, True], ids=["bare", "in a cache context"])
def test_what_the_router_adds(benchmark: Any, capsys: Any, in_cache_context: bool) -> None:
    makers: dict[str, Callable[[], NoOpPipeline]] = {"plain": plain, "diffusers hook": hooked}
    if in_cache_context:  # outside one, the state of a first-block cache cannot be reached
        makers["first-block cache"] = first_block_cached
    others = {name: make() for name, make in makers.items()}
    pipe = routed()
    measured: dict[str, list[float]] = {name: [] for name in (*others, "router")}

    def take_turns() -> None:
        for name, other in others.items():
            measured[name].append(median_call_us(other, in_cache_context))

    def measure_router() -> None:
        measured["router"].append(median_call_us(pipe, in_cache_context))

    benchmark.pedantic(measure_router, setup=take_turns, rounds=ROUNDS, warmup_rounds=2)
    measured = {name: times_us[-ROUNDS:] for name, times_us in measured.items()}
    benchmark.extra_info["call_us"] = {name: statistics.median(times_us) for name, times_us in measured.items()}
    benchmark.extra_info["added_us"] = {name: statistics.median(added_us(measured, name)) for name in measured}
    with capsys.disabled():
        print("\n" + report(measured, "in a cache context" if in_cache_context else "outside a cache context"))
    if not in_cache_context:
        assert benchmark.extra_info["added_us"]["router"] <= MOST_ADDED_US


def test_the_router_adds_no_gross_time() -> None:
    """With a bound so wide that only a gross regression passes it, on a busy machine too."""
    reference, pipe = plain(), plain()
    with fb.enable(pipe, NoOpDenoiser(), "LSL") as blend:
        added = [median_call_us(pipe, True) - median_call_us(reference, True) for _ in range(8)]
    assert blend.trace.last is not None
    letters = "".join(call.step.denoiser for call in blend.trace.last.calls)
    assert letters == "L" * 40 + "S" * 40 + "L" * 20, "not routed, so nothing was measured"
    assert min(added) < 60.0
