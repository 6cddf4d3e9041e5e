"""What every adapter on a cache of diffusers' own holds to, beside the contract of all adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import flowblend_plugins as fb
from flowblend_plugins.testing import (
    AdapterContract,
    PipelineSnapshot,
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)

ROUND_TRIP = "L:4,S:2,L:4"


def small_wan() -> Any:
    return tiny_wan_denoiser(layers=2)


def small_ltx() -> Any:
    return tiny_ltx_denoiser(layers=2)


def blocks_of(denoiser: Any) -> nn.ModuleList:
    return denoiser.blocks if hasattr(denoiser, "blocks") else denoiser.transformer_blocks


@contextlib.contextmanager
def recorded(denoiser: nn.Module) -> Iterator[list[tuple[dict[str, Any], torch.Tensor]]]:
    """Keyword arguments and outputs of all calls of the denoiser."""
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    def record(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append((kwargs, output[0].clone()))

    handle = denoiser.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


class NativeCacheContract(AdapterContract):
    """Subclass it as ``class TestMine(NativeCacheContract)``, and once more with the LTX pipeline.

    Attributes:
        never_spec: options with which it never reuses.
        skipped_outcome: what the trace calls a call that was not computed.
    """

    never_spec: ClassVar[str]
    skipped_outcome: ClassVar[str] = "reuse"
    make_small = staticmethod(small_wan)

    def config(self) -> Any:
        """diffusers' own config of what ``spec`` asks for."""
        raise NotImplementedError

    def probe_module(self, denoiser: Any) -> nn.Module:
        """A module that runs if and only if a call is computed, other than those the adapter watches."""
        last: Any = blocks_of(denoiser)[-1]
        return last.ff if hasattr(last, "ff") else last.ffn

    def put_on_by_hand(self, pipe: Any) -> None:
        pipe.transformer.enable_cache(self.config())

    def by_hand(self, pipe: Any) -> torch.Tensor:
        self.put_on_by_hand(pipe)
        return generate(pipe, **self.call)

    def blended(self, pipe: Any, schedule: str = ROUND_TRIP, spec: str | None = None, **options: Any) -> fb.Blend:
        adapters = [self.spec if spec is None else spec]
        return fb.enable(pipe, self.make_small(), schedule, adapters=adapters, **options)

    def with_options(self, text: str) -> str:
        return f"{self.spec[:-1]}, {text})" if self.spec.endswith(")") else f"{self.spec}({text})"

    def test_with_a_batch_it_equals_the_cache_by_hand(self) -> None:
        generator = torch.Generator().manual_seed(7)
        plain = self.make_pipeline()
        width = plain.transformer.config.get("text_dim") or plain.transformer.config["caption_channels"]
        call = {**self.call, **{k: torch.randn(2, 8, width, generator=generator) for k in ("prompt_embeds",)}}
        call["negative_prompt_embeds"] = torch.zeros(2, 8, width)
        if "caption_channels" in plain.transformer.config:
            call |= {"prompt_attention_mask": torch.ones(2, 8), "negative_prompt_attention_mask": torch.ones(2, 8)}
        self.put_on_by_hand(plain)
        expected = generate(plain, **call)
        pipe = self.make_pipeline()
        with self.blended(pipe, "LLL"):
            assert torch.equal(generate(pipe, **call), expected)

    def test_where_it_never_reuses_it_equals_no_cache(self) -> None:
        pipe = self.make_pipeline()
        with fb.enable(pipe, self.make_small(), ROUND_TRIP):
            expected = generate(pipe, **self.call)
        with self.blended(pipe, spec=self.never_spec) as blend:
            assert torch.equal(generate(pipe, **self.call), expected)
            assert {call.outcome for call in blend.trace.generations[-1].calls} == {"compute"}

    def test_the_first_large_calls_after_the_small_stage_equal_an_uncached_twin(self) -> None:
        pipe, twin = self.make_pipeline(), self.make_pipeline().transformer
        with self.blended(pipe), recorded(pipe.transformer) as calls:
            generate(pipe, **self.call)
        per_step = len(calls) // 8
        with torch.no_grad():
            for kwargs, output in calls[4 * per_step : 5 * per_step]:
                assert torch.equal(output, twin(**kwargs)[0])

    def test_the_trace_says_what_happened(self) -> None:
        pipe = self.make_pipeline()
        with self.blended(pipe) as blend:
            ran: list[str] = []
            handles = [
                self.probe_module(denoiser).register_forward_hook(lambda *_, letter=letter: ran.append(letter))
                for letter, denoiser in blend.denoisers.items()
            ]
            generate(pipe, **self.call)
            for handle in handles:
                handle.remove()
            calls = blend.trace.generations[-1].calls
            assert ran == [call.step.denoiser for call in calls if call.outcome == "compute"]
            assert "compute" in {call.outcome for call in calls} != {"compute"}

    def test_the_warm_up_of_every_stage_is_computed(self) -> None:
        pipe = self.make_pipeline()
        with self.blended(pipe, "L:5,S:1,L:4", self.with_options("warmup_steps=3")) as blend:
            generate(pipe, **self.call)
            outcomes: dict[int, set[str]] = {}
            for call in blend.trace.generations[-1].calls:
                outcomes.setdefault(call.step.step_index, set()).add(call.outcome)
        assert all(outcomes[step] == {"compute"} for step in (0, 1, 2, 5, 6, 7, 8))
        assert (outcomes[3] | outcomes[4]) != {"compute"}

    def test_it_is_put_only_on_the_denoisers_named(self) -> None:
        pipe = self.make_pipeline()
        for letter, other in ("LS", "SL"):
            with self.blended(pipe, "L:5,S:5", self.with_options(f"denoisers='{letter}'")) as blend:
                assert not blend.denoisers[other].is_cache_enabled
                generate(pipe, **self.call)
                last = blend.trace.generations[-1]
                assert last.num_forwards(letter, self.skipped_outcome) > 0  # type: ignore[arg-type]
                assert last.num_forwards(other, self.skipped_outcome) == 0  # type: ignore[arg-type]

    def test_a_branch_answers_as_if_the_other_were_not_there(self) -> None:
        """Each branch's calls are replayed alone on a twin with diffusers' own cache: mixed state would show."""
        pipe = self.make_pipeline()
        with self.blended(pipe, "LLL") as blend, recorded(pipe.transformer) as calls:
            generate(pipe, **self.call)
            steps = [call.step for call in blend.trace.generations[-1].calls]
            outcomes = [call.outcome for call in blend.trace.generations[-1].calls]
        assert self.skipped_outcome in outcomes
        for branch in {step.branch for step in steps}:
            twin = self.make_pipeline().transformer
            twin.enable_cache(self.config())
            for step, (kwargs, output) in zip(steps, calls, strict=True):
                if step.branch == branch:
                    position = {"step_index": step.step_index, "sigma": step.sigma}
                    with (
                        torch.no_grad(),
                        twin.cache_context(branch, num_inference_steps=step.num_inference_steps, **position),
                    ):
                        assert torch.equal(twin(**kwargs)[0], output)

    def test_offloading_changes_nothing(self) -> None:
        pipe = self.make_pipeline()
        with self.blended(pipe):
            expected = generate(pipe, **self.call)
        pipe.enable_model_cpu_offload(device="cpu")  # accelerate's hooks run as on a GPU
        generate(pipe, **self.call)
        before = PipelineSnapshot.of(pipe)
        with self.blended(pipe):
            for _ in range(3):
                assert torch.equal(generate(pipe, **self.call), expected)
        afresh = (
            "attributes",
            "forward",
            "_all_hooks",
            "_offload_device",
        )  # offloading is put on again, with new objects
        assert [found for found in before.differences(pipe) if not found.endswith(afresh)] == []
        assert not any(hasattr(module, "_diffusers_hook") for module in blocks_of(pipe.transformer).modules())

    def test_a_denoiser_that_has_a_cache_is_refused(self) -> None:
        pipe, small = self.make_pipeline(), self.make_small()
        small.enable_cache(self.config())
        before = PipelineSnapshot.of(pipe)
        with pytest.raises(fb.StackError, match="denoiser S: it has a cache enabled already") as refused:
            fb.enable(pipe, small, "LSL", adapters=[self.spec])
        assert "disable_cache()" in str(refused.value)
        assert before.differences(pipe) == []

    def test_both_denoisers_are_untouched_after_detaching(self) -> None:
        pipe, small = self.make_pipeline(), self.make_small()
        modules = [module for denoiser in (pipe.transformer, small) for module in denoiser.modules()]
        before = [dict(module.__dict__) for module in modules]
        with fb.enable(pipe, small, ROUND_TRIP, adapters=[self.spec]):
            generate(pipe, **self.call)
        for module, attributes in zip(modules, before, strict=True):
            assert module.__dict__.keys() == attributes.keys()
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


class OnWan:
    make_pipeline = staticmethod(tiny_wan_pipeline)
    make_small = staticmethod(small_wan)


class OnLTX:
    make_pipeline = staticmethod(tiny_ltx_pipeline)
    make_small = staticmethod(small_ltx)
