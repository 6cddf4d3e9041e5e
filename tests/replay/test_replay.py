"""A generation that is answered in part from another's recording is the whole one, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import flowblend_plugins as fb
from flowblend_compat_matrix.reference import CALL_DEFAULTS, load_pair
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.errors import RoutingError
from flowblend_plugins.routing.replay import checksum, replayable_steps
from flowblend_plugins.testing import (
    PipelineSnapshot,
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from tests.exactness.pipelines import FAMILIES

WAN = (tiny_wan_pipeline, lambda: tiny_wan_denoiser(layers=2))
LTX = (tiny_ltx_pipeline, lambda: tiny_ltx_denoiser(layers=2))
STACKS: list[tuple[Any, tuple[str, ...]]] = [
    (WAN, ()),
    (WAN, ("flow_heun(num_inference_steps=10)",)),
    (WAN, ("dpmpp_3m(num_inference_steps=10)",)),
    (WAN, ("sa_solver(num_inference_steps=10)",)),
    (WAN, ("first_block_cache(threshold=0.5)",)),
    (WAN, ("taylorseer(cache_interval=2)",)),
    (WAN, ("sea_cache(threshold=0.5)",)),
    (WAN, ("cache_dit(threshold=0.5)",)),
    (WAN, ("first_block_cache(threshold=0.5)", "unipc(num_inference_steps=8)")),
    (LTX, ("first_block_cache(threshold=0.5)",)),
    (LTX, ("pyramid_attention_broadcast(timestep_range=(-1, 1001))",)),
    (LTX, ("faster_cache(attention_interval=2, attention_timestep_range=(-1, 1001))",)),
]
"""Caches at thresholds where they do reuse on random denoisers, which the test makes sure of."""


@pytest.mark.parametrize(("pair", "stack"), STACKS, ids=[" + ".join(stack) or "nothing stacked" for _, stack in STACKS])
def test_shared_stages_change_nothing(pair: Any, stack: tuple[str, ...]) -> None:
    make_pipeline, make_small = pair
    pipe, small = make_pipeline(), make_small()
    call: dict[str, Any] = {"guidance_scale": 1.0} if stack and stack[0].startswith("faster") else {}
    if any("num_inference_steps" in text for text in stack):
        call["num_inference_steps"] = None
    whole, outcomes = {}, {}
    for schedule in ("LLL", "LSS", "LSL", "SSS", "SLL"):
        with fb.enable(pipe, small, schedule, adapters=stack) as blend:
            whole[schedule] = generate(pipe, **call)
            outcomes[schedule] = [one.outcome for one in blend.trace.generations[-1].calls]
    if any("cache" in text or "taylor" in text or "broadcast" in text for text in stack):
        assert set(outcomes["LLL"]) != {"compute"}, "this cache reuses nothing here: choose options that do"
    recordings = []
    shares = {}
    for schedule in ("LLL", "LSS", "LSL", "SSS", "SLL"):
        with fb.enable(pipe, small, schedule, adapters=stack) as blend, blend.recorded(recordings) as recording:
            assert torch.equal(generate(pipe, **call), whole[schedule]), schedule
            calls = blend.trace.generations[-1].calls
        assert [one.outcome for one in calls] == outcomes[schedule]
        shares[schedule] = recording.num_replayed / len(recording.calls)
        recordings.append(recording)
    assert shares["LLL"] == shares["SSS"] == 0.0
    assert shares["LSS"] == pytest.approx(0.4, abs=0.1)
    assert shares["LSL"] == pytest.approx(0.8, abs=0.1)
    assert shares["SLL"] == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("stack", ["teacache(threshold='fast')", "mag_cache(ratios='reference', threshold=0.24)"])
def test_caches_fitted_to_the_embedded_pair(stack: str) -> None:
    pair = load_pair()
    call: dict[str, Any] = {**CALL_DEFAULTS, "num_inference_steps": 10, "output_type": "latent"}

    def run() -> torch.Tensor:
        return pair.pipeline("a red circle", generator=torch.Generator().manual_seed(0), **call).frames

    with fb.enable(pair.pipeline, pair.small, "LSL", adapters=[stack]) as blend:
        whole = run()
        assert {one.outcome for one in blend.trace.generations[-1].calls} == {"compute", "reuse"}
    with fb.enable(pair.pipeline, pair.small, "LLL", adapters=[stack]) as blend, blend.recorded() as large:
        run()
    with fb.enable(pair.pipeline, pair.small, "LSL", adapters=[stack]) as blend, blend.recorded([large]) as shared:
        assert torch.equal(run(), whole)
    assert shared.num_replayed == 8


@pytest.mark.parametrize("name", FAMILIES)
def test_every_pipeline_replays(name: str) -> None:
    family = FAMILIES[name]
    pipe, small = family.pipe(family.schedulers[0]), family.make_small()
    with fb.enable(pipe, small, "LSL") as blend:
        whole = family.run(pipe)
    with fb.enable(pipe, small, "LLL") as blend, blend.recorded() as large:
        family.run(pipe)
    before = PipelineSnapshot.of(pipe)
    with fb.enable(pipe, small, "LSL") as blend, blend.recorded([large]) as run:
        assert torch.equal(family.run(pipe), whole)
    assert 0 < run.num_replayed < len(run.calls)
    assert not before.differences(pipe)


def test_a_whole_generation_may_be_replayed() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    with fb.enable(pipe, small, "LSL") as blend:
        with blend.recorded() as first:
            expected = generate(pipe)
        with blend.recorded([first]) as second:
            assert torch.equal(generate(pipe), expected)
    assert (second.num_replayed, second.num_computed) == (20, 0)


@pytest.mark.parametrize(
    ("recorded", "wanted", "steps"),
    [
        ("LLLLL", "LLSSL", 2),
        ("LLSSS", "LLSSL", 4),
        ("LLSSL", "LLSSS", 2),
        ("LLLLL", "LLLLL", 5),
        ("LLLLL", "SSSSS", 0),
        ("LLLLL", "LLLLLS", 5),
        ("LLLLLL", "LLLLL", 0),
    ],
)
def test_a_replay_ends_at_a_switch(recorded: str, wanted: str, steps: int) -> None:
    assert replayable_steps(recorded, wanted) == steps


def recorded_large(pipe: Any, **call: Any) -> Any:
    with fb.enable(pipe, tiny_wan_denoiser(), "LLL") as blend, blend.recorded() as recording:
        generate(pipe, **call)
    return recording


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "other inputs"),
        ({"prompt_embeds": torch.zeros(1, 8, 16)}, "other inputs"),
        ({"num_inference_steps": 8}, "another sampler, number of steps"),
    ],
)
def test_a_recording_of_something_else_is_refused(changes: dict[str, Any], said: str) -> None:
    pipe = tiny_wan_pipeline()
    if "prompt_embeds" in changes:
        changes = {"prompt_embeds": torch.zeros(1, 8, pipe.transformer.config.text_dim)}
    recording = recorded_large(pipe)
    with (
        fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend,
        blend.recorded([recording]),
        pytest.raises(RoutingError, match=said),
    ):
        generate(pipe, **changes)


def test_a_recording_of_another_stack_or_denoiser_is_refused() -> None:
    pipe = tiny_wan_pipeline()
    recording = recorded_large(pipe)
    other = tiny_wan_denoiser(layers=2)
    cached = fb.enable(pipe, other, "LSL", adapters=["first_block_cache(threshold=0.1)"])
    with cached as blend, pytest.raises(RoutingError, match="other adapters"), blend.recorded([recording]):
        pass
    with fb.enable(pipe, other, "LSL") as blend, blend.recorded([recording]):
        pass  # no call of it was answered by the small one
    strange = fb.enable(tiny_wan_pipeline(), other, "LSL")
    with strange as blend, pytest.raises(RoutingError, match="other denoisers"), blend.recorded([recording]):
        pass


def test_an_interrupted_recording_is_refused() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with fb.enable(pipe, small, "LSL") as blend:
        with blend.recorded() as recording, pytest.raises(KeyboardInterrupt):
            generate(pipe, callback_on_step_end=interrupt)
        with pytest.raises(RoutingError, match="did not come to its end"), blend.recorded([recording]):
            pass
        generate(pipe)  # and nothing is left of it


def test_one_recording_is_one_generation() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    with fb.enable(pipe, small, "LSL") as blend, blend.recorded():
        generate(pipe)
        with pytest.raises(RoutingError, match="second generation"):
            generate(pipe)
        with pytest.raises(RoutingError, match="under way"), blend.recorded():
            pass


@dataclass(frozen=True, kw_only=True)
class Spanning(fb.Adapter):
    name: ClassVar[str] = "spanning"
    traits: ClassVar[fb.AdapterTraits] = fb.AdapterTraits(family=Family.FEATURE_CACHING, spans_stages=True)

    @contextlib.contextmanager
    def attach(self, target: fb.AttachTarget) -> Iterator[None]:
        yield


class Overruling:
    @fb.hookimpl
    def flowblend_route(self, step: fb.StepContext) -> str:
        return "L"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapters": [Spanning()]}, "spanning carries state"),
        ({"reentry": "keep"}, "reentry='keep'"),
        ({"plugins": [Overruling()]}, "flowblend_route"),
    ],
)
def test_what_depends_on_the_past_is_not_recorded(options: dict[str, Any], said: str) -> None:
    pipe = tiny_wan_pipeline()
    enabled = fb.enable(pipe, tiny_wan_denoiser(), "LSL", **options)
    with enabled as blend, pytest.raises(RoutingError, match=said), blend.recorded():
        pass


def test_a_pipeline_that_writes_into_what_it_was_given_spoils_no_recording() -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    step: Callable[..., Any] = pipe.scheduler.step

    def writing(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = step(model_output.clone(), *args, **kwargs)
        model_output.zero_()
        return result

    pipe.scheduler.step = writing
    with fb.enable(pipe, small, "LSL") as blend:
        expected = generate(pipe)
        with blend.recorded() as first:
            assert torch.equal(generate(pipe), expected)
        for _ in range(2):
            with blend.recorded([first]):
                assert torch.equal(generate(pipe), expected)


def test_checksums_tell_order_sign_shape_and_kind_apart() -> None:
    tensor = torch.tensor([1.0, 2.0, 3.0])
    others = [tensor.flip(0), -tensor, tensor[None], tensor.double(), tensor.half(), tensor + 1e-7, tensor > 1, None]
    assert all(checksum(tensor) != checksum(other) for other in others)
    assert checksum({"a": [tensor]}) == checksum({"a": [tensor.clone()]})
