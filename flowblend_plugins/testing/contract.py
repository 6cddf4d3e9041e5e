"""Contract tests of an adapter, as a class that its author subclasses."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast
from unittest import SkipTest

import torch
from torch import nn

from ..api import enable
from ..blend import Blend
from ..contract.adapter import Adapter
from ..contract.spec import adapter_from_spec, write_spec
from ..errors import AdapterError
from ..manager import adapters_by_name, make_plugin_manager
from ..step import StepContext
from ..trace.trace import Trace
from ..types import Args, Denoiser, Keywords, KeywordsView, Output, Pipeline
from .snapshot import PipelineSnapshot
from .tiny_pipelines import generate, prompts_in_a_batch, tiny_wan_denoiser, tiny_wan_pipeline


@dataclass(frozen=True)
class SeenCall:
    """One denoiser call: where it stood, what it was given, and what it gave (of the adapter, or computed)."""

    step: StepContext
    args: Args
    kwargs: Keywords
    output: torch.Tensor


@contextlib.contextmanager
def seen_calls(blend: Blend, letter: str) -> Iterator[list[SeenCall]]:
    """Fills a list with the calls of one denoiser, from outside of what adapters put on it."""
    calls: list[SeenCall] = []
    trace: Trace = blend.trace

    def see(module: nn.Module, args: Args, kwargs: Keywords, output: Output) -> None:
        assert trace.step is not None
        calls.append(SeenCall(trace.step, args, kwargs, output[0].clone()))

    handle = blend.denoisers[letter].register_forward_hook(see, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


class AdapterContract:
    """Tests that every adapter must pass. Subclass it in a test module, as ``class TestMine(AdapterContract)``.

    Attributes:
        spec: the adapter as users write it, with options that make a difference.
        never_spec: the same with options under which it computes everything; ``None`` if there are none.
        wrong_specs: texts that must be refused: options out of range, of a wrong type, unknown.
        call: arguments of :func:`generate` while the adapter is attached.
        plugins: plugin objects to register, for an adapter that is not installed.
        round_trip: a schedule over the steps of ``call`` that comes back to the large denoiser.
        make_pipeline, make_small: the large pipeline and the small denoiser to try it on.
    """

    spec: ClassVar[str]
    never_spec: ClassVar[str | None] = None
    wrong_specs: ClassVar[Sequence[str]]
    call: ClassVar[KeywordsView] = {}
    plugins: ClassVar[Sequence[object]] = ()
    round_trip: ClassVar[str] = "L:4,S:2,L:4"
    make_pipeline: Callable[[], Pipeline] = staticmethod(tiny_wan_pipeline)
    make_small: Callable[[], Denoiser] = staticmethod(tiny_wan_denoiser)

    def by_hand(self, pipe: Pipeline) -> torch.Tensor:
        """Latents of the technique put on a fresh pipeline without FlowBlending, for the same ``call``."""
        raise NotImplementedError(f"{type(self).__name__} must say how {self.spec} is done by hand")

    def enabled(self, pipe: Pipeline, schedule: str) -> Blend:
        return enable(pipe, self.make_small(), schedule, adapters=[self.spec], plugins=self.plugins)

    def expect_nothing_left(self, differences: list[str]) -> None:
        assert not differences, (
            f"{self.spec} leaves behind: {', '.join(differences)}. Undo it in attach(), in `finally:` after `yield`"
        )

    def adapter(self, spec: str) -> Adapter:
        return adapter_from_spec(spec, adapters_by_name(make_plugin_manager(self.plugins)))

    def test_alone_it_equals_the_technique_by_hand(self) -> None:
        with torch.no_grad():
            expected = self.by_hand(self.make_pipeline())
        pipe = self.make_pipeline()
        plain = generate(pipe, **self.call)
        with self.enabled(pipe, "LLL"):
            assert torch.equal(generate(pipe, **self.call), expected), (
                f"{self.spec} is not the technique by hand. Compare call by call, at `trace.step`"
            )
        assert not torch.equal(plain, expected), f"{self.spec} changes nothing here: choose options that do"

    def test_a_batch_equals_the_technique_by_hand(self) -> None:
        with prompts_in_a_batch(2), torch.no_grad():
            expected = self.by_hand(self.make_pipeline())
            pipe = self.make_pipeline()
            with self.enabled(pipe, "LLL"):
                seen = generate(pipe, **self.call)
        assert len(expected) == 2, "by_hand makes one video where two were asked for: generate() makes as many as asked"
        assert torch.equal(seen, expected), f"{self.spec} is not the technique by hand on a batch of two"

    def test_options_that_never_reuse_equal_no_adapter(self) -> None:
        if self.never_spec is None:
            raise SkipTest("never_spec is not set: no options of this adapter compute everything")
        pipe = self.make_pipeline()
        with enable(pipe, self.make_small(), self.round_trip):
            expected = generate(pipe, **self.call)
        with enable(pipe, self.make_small(), self.round_trip, adapters=[self.never_spec], plugins=self.plugins):
            assert torch.equal(generate(pipe, **self.call), expected), (
                f"{self.never_spec} changes something. Set never_spec to options that compute every call, or to None"
            )

    def test_the_first_large_calls_after_the_small_stage_are_computed(self) -> None:
        if not self.adapter(self.spec).traits_with_options().carries_step_state:
            raise SkipTest("this adapter carries nothing from step to step")
        pipe, twin = self.make_pipeline(), self.make_pipeline().transformer
        with self.enabled(pipe, self.round_trip) as blend, seen_calls(blend, "L") as calls:
            generate(pipe, **self.call)
        indices = [call.step.step_index for call in calls]
        back = next((b for a, b in itertools.pairwise(indices) if b > a + 1), None)
        assert back is not None, (
            f"round_trip={self.round_trip} does not come back to the large denoiser. Give one like 'L:4,S:2,L:4'"
        )
        for call in calls:
            if call.step.step_index == back:
                with torch.no_grad():
                    fresh = twin(*call.args, **call.kwargs)[0]
                assert torch.equal(call.output, fresh), (
                    f"{self.spec} answers from before the small stage. Forget its state in flowblend_stage_entered"
                )

    def test_guidance_branches_never_mix(self) -> None:
        """One branch is given another text on the very same latents, and the other branch must not notice."""
        texts = {"cond": "negative_prompt_embeds", "uncond": "prompt_embeds"}
        for branch, other_text in texts.items():
            pipe = self.make_pipeline()
            latents: list[torch.Tensor] = []

            def keep(
                pipe: Pipeline, step: int, timestep: object, tensors: Keywords, kept: list[torch.Tensor] = latents
            ) -> Keywords:
                kept.append(tensors["latents"].clone())
                return tensors

            def force(
                pipe: Pipeline, step: int, timestep: object, tensors: Keywords, kept: list[torch.Tensor] = latents
            ) -> Keywords:
                return {**tensors, "latents": kept[step].clone()}

            with self.enabled(pipe, "LLL") as blend:
                letter = next(iter(blend.schedule.letters))
                with seen_calls(blend, letter) as calls:
                    generate(pipe, **{**self.call, "callback_on_step_end": keep})
                if {call.step.branch for call in calls} != {"cond", "uncond"}:
                    raise SkipTest("on this pipeline the guidance branches are not two calls")
                width = calls[0].kwargs["encoder_hidden_states"].shape[-1]
                changed = {other_text: torch.ones(1, 8, width), "callback_on_step_end": force}
                with seen_calls(blend, letter) as again:
                    generate(pipe, **{**self.call, **changed})
            first = [call.output for call in calls if call.step.branch == branch]
            second = [call.output for call in again if call.step.branch == branch]
            assert len(first) == len(second)
            for one, two in zip(first, second, strict=True):
                assert torch.equal(one, two), (
                    f"{self.spec} lets the other branch's text into {branch}. Keep state by denoiser and branch"
                )

    def test_second_generation_equals_the_first(self) -> None:
        pipe = self.make_pipeline()
        with self.enabled(pipe, "LSL"):
            first = generate(pipe, **self.call)
            generate(pipe, seed=1, **self.call)
            assert torch.equal(generate(pipe, **self.call), first), (
                f"{self.spec} carries state between generations. Forget it in flowblend_generation_finished"
            )

    def test_disable_restores_everything(self) -> None:
        pipe, small = self.make_pipeline(), self.make_small()
        before = generate(pipe, **self.call)
        snapshot = PipelineSnapshot.of(pipe, cast(nn.Module, small))
        self.make_small = lambda: small  # of this object: every test has its own
        with self.enabled(pipe, "LSL"):
            generate(pipe, **self.call)
        assert torch.equal(generate(pipe, **self.call), before), (
            f"{self.spec} still has an effect after disable(). Undo it in attach(), in `finally:` after `yield`"
        )
        self.expect_nothing_left(snapshot.differences(pipe))

    def test_a_failed_generation_leaves_nothing_behind(self) -> None:
        pipe = self.make_pipeline()
        generate(pipe, **self.call)
        snapshot = PipelineSnapshot.of(pipe)

        def interrupt(pipeline: Pipeline, step_index: int, timestep: object, tensors: Keywords) -> Keywords:
            raise KeyboardInterrupt

        with self.enabled(pipe, "LSL"):
            expected = generate(pipe, **self.call)
            try:
                generate(pipe, **{**self.call, "callback_on_step_end": interrupt})
            except KeyboardInterrupt:
                pass
            else:
                raise AssertionError("the generation was not interrupted")
            again = generate(pipe, **self.call)
            assert torch.equal(again, expected), (
                f"{self.spec} carries state over from an interrupted generation. Forget it in "
                "flowblend_generation_finished, which is called then too"
            )
        generate(pipe, **self.call)  # a pipeline notes its last call on itself, so both snapshots follow the same one
        self.expect_nothing_left(snapshot.differences(pipe))

    def test_text_gives_the_same_adapter_again(self) -> None:
        adapter = self.adapter(self.spec)
        assert self.adapter(write_spec(adapter)) == adapter, (
            f"{write_spec(adapter)} is not {adapter}. Make its options plain literals, in a frozen dataclass"
        )

    def test_suggested_settings_are_its_own(self) -> None:
        for text in type(self.adapter(self.spec)).suggested:
            assert type(self.adapter(text)) is type(self.adapter(self.spec)), (
                f"{text} is another adapter. `suggested` holds settings of its own only"
            )

    def test_wrong_options_are_refused_by_name(self) -> None:
        assert self.wrong_specs, "wrong_specs is empty: say what must be refused"
        for spec in self.wrong_specs:
            try:
                self.adapter(spec)
            except AdapterError as error:
                message = str(error)
            else:
                raise AssertionError(
                    f"{spec} was accepted. Refuse it in __post_init__, with a ValueError that names the option"
                )
            name = self.adapter(self.spec).name
            assert repr(name) in message, f"the error on {spec} does not name {name}: {message}"
