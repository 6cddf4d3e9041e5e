"""FLOPs counted from shapes alone equal those of the real run on a CPU, on every family and after what users do."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import flowblend_plugins as fb
from flowblend_plugins.errors import FlopCountError
from flowblend_plugins.testing import (
    PipelineSnapshot,
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from flowblend_plugins.trace import flops
from flowblend_plugins.trace.flops import CallInputs, FlopCounter, OpaqueInput, TensorInput, describe_inputs
from tests.exactness.pipelines import FAMILIES, SKYREELS, STABLE_DIFFUSION, VIDEO_TO_VIDEO, Family

ALL_FAMILIES = [*FAMILIES.values(), SKYREELS, STABLE_DIFFUSION, VIDEO_TO_VIDEO]
TINY = {"wan": (tiny_wan_pipeline, tiny_wan_denoiser), "ltx": (tiny_ltx_pipeline, tiny_ltx_denoiser)}


class RealCount:
    """What really ran: torch's count under the plain attention kernel, and a sum over the linear layers by hand."""

    def __init__(self, denoisers: list[nn.Module]) -> None:
        self.linear = 0
        self._names = {type(denoiser).__name__ for denoiser in denoisers}
        self._counter = FlopCounterMode(display=False)
        self._linears = [m for d in denoisers for m in d.modules() if isinstance(m, nn.Linear)]

    @property
    def total(self) -> int:
        counts = self._counter.get_flop_counts()  # by module, since a solver multiplies matrices too
        return sum(sum(counts[name].values()) for name in self._names)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        handles = [layer.register_forward_hook(self._add) for layer in self._linears]
        with sdpa_kernel(SDPBackend.MATH), self._counter:
            yield
        for handle in handles:
            handle.remove()

    def _add(self, layer: Any, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self.linear += 2 * args[0].numel() * layer.out_features


@pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda family: family.name)
def test_one_generation_of_every_family_equals_the_real_count(family: Family) -> None:
    pipe = family.pipe()
    real = RealCount([getattr(pipe, family.slot)])
    with fb.enable(pipe, schedule="LLL") as blend, real.running():
        family.run(pipe, 2)
    counted = blend.trace.flops()
    assert (counted.linear, counted.full) == (real.linear, real.total)
    assert 0 < counted.linear < counted.full
    assert counted.linear_fraction_of_large == counted.full_fraction_of_large == 1.0


@pytest.mark.parametrize("name", TINY)
def test_a_blend_equals_the_real_count(name: str) -> None:
    make_pipe, make_small = TINY[name]
    pipe, small = make_pipe(), make_small()
    large_only = RealCount([pipe.transformer])
    with large_only.running():
        generate(pipe)
    real = RealCount([pipe.transformer, small])
    with fb.enable(pipe, small, "LSL") as blend, real.running():
        generate(pipe)
    counted = blend.trace.flops()
    assert (counted.linear, counted.full) == (real.linear, real.total)
    assert counted.linear_fraction_of_large == pytest.approx(real.linear / large_only.linear)
    assert counted.full_fraction_of_large == pytest.approx(real.total / large_only.total)
    assert counted.linear_fraction_of_large < 0.9


def test_a_batch_and_no_guidance_are_counted_as_they_ran() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        generate(pipe)
        generate(pipe, guidance_scale=1.0)
        generate(pipe, prompt_embeds=torch.randn(2, 8, 16), negative_prompt_embeds=torch.randn(2, 8, 16))
    guided, plain, batch = (blend.trace.flops(index) for index in range(3))
    assert guided.full == 2 * plain.full
    assert batch.full == 2 * guided.full


@pytest.mark.parametrize("outcome", ["reuse", "predict"])
def test_calls_that_were_not_computed_cost_nothing_and_stay_in_large_only(outcome: Any) -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, schedule="LLL") as blend:
        generate(pipe)
        computed = blend.trace.flops()
        answered = iter(range(1000))

        def report(*call: Any) -> None:
            if next(answered) % 4 == 3:
                blend.trace.reporter.report_outcome(outcome)

        handle = pipe.transformer.register_forward_hook(report)
        generate(pipe)
        handle.remove()
    cached = blend.trace.flops()
    assert cached.full * 4 == computed.full * 3
    assert cached.full_fraction_of_large == cached.linear_fraction_of_large == 0.75


def test_lora_compilation_and_hooks_are_left_out_and_left_alone() -> None:
    from peft import LoraConfig

    plain = tiny_wan_pipeline()
    with fb.enable(plain, tiny_wan_denoiser(), "LSL") as blend:
        generate(plain, 4)
    expected = blend.trace.flops()

    pipe = tiny_wan_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    pipe.transformer.blocks[0].compile(backend="eager")
    pipe.transformer.register_forward_hook(lambda *call: None)
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        generate(pipe, 4)
        before, rng = PipelineSnapshot.of(pipe), torch.get_rng_state()
        assert blend.trace.flops() == expected
        assert not before.differences(pipe)
        assert torch.equal(torch.get_rng_state(), rng)


def test_nothing_is_counted_until_asked_and_each_shape_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[CallInputs] = []

    def count(denoiser_class: Any, config: Any, inputs: CallInputs, skipped: frozenset[str]) -> Any:
        counted.append(inputs)
        return original(denoiser_class, config, inputs, skipped)

    original = flops.count_forward
    monkeypatch.setattr(flops, "count_forward", count)
    monkeypatch.setattr(flops, "_COUNTED", weakref.WeakKeyDictionary())  # whatever other tests have counted
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        generate(pipe)
        generate(pipe, seed=1)
        assert counted == []
        blend.trace.flops()
        blend.trace.flops(0)
        blend.trace.summary()
        assert len(counted) == 2, "one for each denoiser"
        generate(pipe, num_frames=13)
        blend.trace.flops()
        assert len(counted) == 4


def test_inputs_are_remembered_without_their_tensors() -> None:
    tensor = torch.zeros(2, 3)
    described = describe_inputs(
        (tensor, 7), {"rope": (tensor, tensor.long()), "extra": {"mask": [tensor > 0]}, "n": None}
    )
    float_input = TensorInput(tensor.shape, torch.float32)
    assert described == CallInputs(
        (float_input, 7),
        {
            "rope": (float_input, TensorInput(tensor.shape, torch.int64)),
            "extra": {"mask": [TensorInput(tensor.shape, torch.bool)]},
            "n": None,
        },
    )
    assert describe_inputs((), {"x": torch.Generator()}).kwargs == {"x": OpaqueInput("Generator")}


def test_half_precision_costs_what_single_precision_costs() -> None:
    pipe = tiny_wan_pipeline()
    pipe.to(torch.bfloat16)
    with fb.enable(pipe, tiny_wan_denoiser().to(torch.bfloat16), "LSL") as blend:
        generate(pipe)
    single = tiny_wan_pipeline()
    with fb.enable(single, tiny_wan_denoiser(), "LSL") as expected:
        generate(single)
    assert blend.trace.flops() == expected.trace.flops()


def test_what_cannot_be_counted_says_why() -> None:
    counter = FlopCounter.of(tiny_wan_denoiser())
    latents, text = (
        TensorInput(torch.Size([1, 4, 3, 4, 4]), torch.float32),
        TensorInput(torch.Size([1, 8, 16]), torch.float32),
    )
    kwargs = {
        "hidden_states": latents,
        "timestep": TensorInput(torch.Size([1]), torch.int64),
        "encoder_hidden_states": text,
    }
    assert counter.count(CallInputs((), kwargs)).total > 0
    with pytest.raises(FlopCountError, match=r"one of its inputs is a Generator"):
        counter.count(CallInputs((), kwargs | {"attention_kwargs": {"noise": OpaqueInput("Generator")}}))
    wrong_width = kwargs | {"encoder_hidden_states": TensorInput(torch.Size([1, 8, 15]), torch.float32)}
    with pytest.raises(FlopCountError, match=r"WanTransformer3DModel cannot be counted from shapes alone"):
        counter.count(CallInputs((), wrong_width))
