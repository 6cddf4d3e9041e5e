"""DeepCache on UNets: what the package does by hand, right at every switch, and the user's own helper adopted."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import flowblend_plugins as fb
from flowblend_adapters.feature_caching.deepcache.adapter import AdoptedDeepCache, DeepCache
from flowblend_adapters.feature_caching.deepcache.helper import find_helper
from flowblend_plugins.testing import PipelineSnapshot, tiny_wan_denoiser, tiny_wan_pipeline
from tests.exactness.pipelines import STABLE_DIFFUSION, UNETS, Family
from tests.exactness.test_placement import offload_models
from tests.exactness.test_undo import Stumble, stumble_at_call

SPEC = "deepcache(interval=3)"
ROUND_TRIP = "L:2,S:2,L:2"
everywhere = pytest.mark.parametrize("family", UNETS, ids=lambda family: family.name)


def helper_on(pipe: Any, interval: int = 3, branch: int = 0) -> DeepCacheSDHelper:
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    return helper


def by_hand(family: Family, interval: int = 3, branch: int = 0, on_small: bool = False, **call: Any) -> torch.Tensor:
    pipe = family.pipe()
    if on_small:
        pipe.unet = family.make_small()
    helper_on(pipe, interval, branch)
    return family.run(pipe, **call)


def outcomes(blend: fb.Blend) -> str:
    """The first letter of each call's outcome in the last generation, in order."""
    assert blend.trace.last is not None
    return "".join(call.outcome[0] for call in blend.trace.last.calls)


@contextlib.contextmanager
def recorded(unet: nn.Module) -> Iterator[list[tuple[Any, Any, torch.Tensor]]]:
    """Inputs and outputs of all calls of a UNet, and beneath the cache whether its middle block ran."""
    calls: list[tuple[Any, Any, torch.Tensor]] = []

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((args, kwargs, output[0].clone()))

    handle = unet.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@everywhere
@pytest.mark.parametrize(("interval", "branch"), [(3, 0), (2, 1)])
def test_alone_it_is_the_helper_by_hand(family: Family, interval: int, branch: int) -> None:
    expected = by_hand(family, interval, branch)
    pipe = family.pipe()
    assert not torch.equal(family.run(pipe), expected)
    with fb.enable(pipe, family.make_small(), "LLL", adapters=[f"deepcache(interval={interval}, branch={branch})"]):
        assert torch.equal(family.run(pipe), expected)
        assert torch.equal(family.run(pipe), expected)


def test_it_is_the_helper_by_hand_on_the_small_denoiser_with_a_batch_and_without_guidance() -> None:
    family = STABLE_DIFFUSION
    pipe = family.pipe()
    call: dict[str, Any] = {"batch": 2, "guidance_scale": 1.0}
    with fb.enable(pipe, family.make_small(), "SSS", adapters=[SPEC]):
        assert torch.equal(family.run(pipe), by_hand(family, on_small=True))
        assert torch.equal(family.run(pipe, **call), by_hand(family, on_small=True, **call))


@everywhere
def test_computing_every_step_is_no_cache_at_all(family: Family) -> None:
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), ROUND_TRIP):
        expected = family.run(pipe)
    with fb.enable(pipe, family.make_small(), ROUND_TRIP, adapters=["deepcache(interval=1)"]) as blend:
        assert torch.equal(family.run(pipe), expected)
        assert outcomes(blend) == "cccccc"


@everywhere
def test_the_first_large_call_after_the_small_stage_is_an_uncached_twins(family: Family) -> None:
    pipe, twin = family.pipe(), family.pipe().unet
    with fb.enable(pipe, family.make_small(), ROUND_TRIP, adapters=[SPEC]) as blend, recorded(pipe.unet) as calls:
        first = family.run(pipe)
        assert outcomes(blend) == "crcrcr"
        assert torch.equal(family.run(pipe), first)
    with torch.no_grad():
        for index, is_equal in ((0, True), (1, False), (2, True), (3, False)):
            args, kwargs, output = calls[index]
            assert torch.equal(twin(*args, **kwargs)[0], output) is is_equal


def test_what_is_kept_over_the_small_stage_is_stale() -> None:
    family = STABLE_DIFFUSION
    pipe, twin = family.pipe(), family.pipe().unet
    blend = fb.enable(pipe, family.make_small(), ROUND_TRIP, adapters=["deepcache(interval=5)"], reentry="keep")
    with blend, recorded(pipe.unet) as calls:
        first = family.run(pipe)
        assert outcomes(blend) == "crcrrc"
        assert torch.equal(family.run(pipe), first)
    args, kwargs, output = calls[2]
    with torch.no_grad():
        assert not torch.equal(twin(*args, **kwargs)[0], output)


@everywhere
def test_disabling_leaves_nothing_behind(family: Family) -> None:
    pipe, small = family.pipe(), family.make_small()
    plain = family.run(pipe)
    before, own = PipelineSnapshot.of(pipe), {name: set(vars(module)) for name, module in small.named_modules()}
    with fb.enable(pipe, small, ROUND_TRIP, adapters=[SPEC]):
        family.run(pipe)
    assert before.differences(pipe) == []
    assert {name: set(vars(module)) for name, module in small.named_modules()} == own
    assert torch.equal(family.run(pipe), plain)


@pytest.mark.parametrize("raising", ["L", "S"])
def test_an_exception_in_the_middle_of_a_step(raising: str) -> None:
    family = STABLE_DIFFUSION
    pipe = family.pipe()
    family.run(pipe)
    before = PipelineSnapshot.of(pipe)
    with fb.enable(pipe, family.make_small(), ROUND_TRIP, adapters=[SPEC]) as blend:
        first = family.run(pipe)
        handle = stumble_at_call(blend.denoisers[raising], 2)
        with pytest.raises(Stumble):
            family.run(pipe)
        handle.remove()
        assert torch.equal(family.run(pipe), first)
    assert before.differences(pipe) == []


@pytest.mark.parametrize("scheduler", ["pndm", "heun-epsilon"])
def test_a_timestep_that_stands_twice_in_the_list_is_two_steps(scheduler: str) -> None:
    family = STABLE_DIFFUSION
    pipe = family.pipe(scheduler)
    with fb.enable(pipe, family.make_small(), "LLL", adapters=["deepcache(interval=2)"]) as blend:
        family.run(pipe)
        num_steps = len(pipe.scheduler.timesteps)
        assert len(set(pipe.scheduler.timesteps.tolist())) < num_steps
        assert outcomes(blend) == ("cr" * num_steps)[:num_steps]


def test_a_scheduler_put_in_after_enabling_is_followed() -> None:
    family = STABLE_DIFFUSION
    plain, pipe = family.pipe("euler-epsilon"), family.pipe()
    helper_on(plain)
    with fb.enable(pipe, family.make_small(), "LLL", adapters=[SPEC]):
        family.run(pipe)
        pipe.scheduler = plain.scheduler.from_config(plain.scheduler.config)
        assert torch.equal(family.run(pipe), family.run(plain))


def test_the_warm_up_of_every_stage_is_computed() -> None:
    family = STABLE_DIFFUSION
    pipe = family.pipe()
    with fb.enable(
        pipe, family.make_small(), "L:3,S:3,L:2", adapters=["deepcache(interval=4, warmup_steps=2)"]
    ) as blend:
        family.run(pipe, num_inference_steps=8)
        assert outcomes(blend) == "ccrccrcc"


@pytest.mark.parametrize(("on", "expected"), [("L", "crcccr"), ("S", "cccrcc"), ("LS", "crcrcr")])
def test_it_is_put_only_on_the_denoisers_named(on: str, expected: str) -> None:
    family = STABLE_DIFFUSION
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), ROUND_TRIP, adapters=[f"deepcache(denoisers='{on}')"]) as blend:
        family.run(pipe)
        assert outcomes(blend) == expected
        assert [letter for letter, unet in blend.denoisers.items() if find_helper(unet) is not None] == list(on)


def test_the_trace_says_what_ran_beneath_the_cache() -> None:
    family = STABLE_DIFFUSION
    pipe, small = family.pipe(), family.make_small()
    ran: list[str] = []
    handles = [
        unet.mid_block.resnets[0].register_forward_hook(lambda *_, letter=letter: ran.append(letter))
        for letter, unet in (("L", pipe.unet), ("S", small))
    ]
    with fb.enable(pipe, small, "L:4,S:3,L:3", adapters=[SPEC]) as blend:
        family.run(pipe, num_inference_steps=10)
        assert blend.trace.last is not None
        assert ran == [call.step.denoiser for call in blend.trace.last.calls if call.outcome == "compute"]
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("branch", [0, 1])
def test_a_reused_call_costs_what_still_ran(branch: int) -> None:
    """Counted by torch over the helper by hand on a plain pipeline, and by the trace."""
    family = STABLE_DIFFUSION
    pipe = family.pipe()
    helper_on(pipe, 2, branch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        counted: list[int] = []
        pipe.unet.register_forward_pre_hook(lambda *_: counted.append(-counter.get_total_flops()))
        pipe.unet.register_forward_hook(lambda *_: counted.append(counted.pop() + counter.get_total_flops()))
        family.run(pipe, num_inference_steps=4)
    assert counted[1] < counted[0]
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LLL", adapters=[f"deepcache(interval=2, branch={branch})"]) as blend:
        family.run(pipe, num_inference_steps=4)
    assert blend.trace.flops().full == sum(counted)


def test_a_call_that_is_not_of_the_blend_is_computed_and_disturbs_nothing() -> None:
    family = STABLE_DIFFUSION
    pipe, twin = family.pipe(), family.pipe().unet
    inputs = (torch.ones(1, 4, 8, 8), torch.tensor(10), torch.ones(1, 8, 16))
    seen: list[torch.Tensor] = []

    def call_it(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(pipe.unet(*inputs, return_dict=False)[0])
        return tensors

    with fb.enable(pipe, family.make_small(), "LLL", adapters=[SPEC]):
        assert torch.equal(family.run(pipe, callback_on_step_end=call_it), by_hand(family))
    with torch.no_grad():
        assert all(torch.equal(output, twin(*inputs, return_dict=False)[0]) for output in seen)
    assert len(seen) == 6


def test_two_guidance_branches_in_two_calls_are_refused_not_mixed() -> None:
    family = STABLE_DIFFUSION
    pipe = family.pipe()

    def call_once_more(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:  # as a second branch would
        pipe.unet(sample, timestep, encoder_hidden_states=torch.zeros(2, 8, 16))
        return sample

    pipe.scheduler.scale_model_input = call_once_more
    with (
        fb.enable(pipe, family.make_small(), "LLL", adapters=[SPEC]),
        pytest.raises(fb.StackError, match=r"calls denoiser L more than once at step 0.*Leave DeepCache out"),
    ):
        family.run(pipe)


def test_on_a_diffusion_transformer_it_says_what_to_use() -> None:
    pipe = tiny_wan_pipeline()
    with pytest.raises(
        fb.StackError, match=r"WanTransformer3DModel has no levels.*Use 'first_block_cache', 'teacache'"
    ):
        fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=["deepcache"])


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("deepcache(interval=0)", "interval=0: expected at least 1"),
        ("deepcache(interval='2')", "interval"),
        ("deepcache(branch=-1)", "branch=-1: expected at least 0"),
        ("deepcache(warmup_steps=-1)", "warmup_steps=-1: expected at least 0"),
        ("deepcache(denoisers='l')", "denoisers='l'"),
        ("deepcache(depth=2)", "depth"),
    ],
)
def test_wrong_options_are_refused(spec: str, match: str) -> None:
    with pytest.raises(fb.AdapterError, match=match):
        fb.enable(STABLE_DIFFUSION.pipe(), STABLE_DIFFUSION.make_small(), "LSL", adapters=[spec])


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("deepcache(denoisers='M')", "names M, and the denoisers of this blend are L, S"),
        ("deepcache(branch=2)", r"branch=2 is not in this UNet2DConditionModel, which has 0, 1, 3\. Name one of these"),
    ],
)
def test_what_the_pipeline_has_not_is_refused_and_leaves_it_untouched(spec: str, match: str) -> None:
    pipe = STABLE_DIFFUSION.pipe()
    before = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.StackError, match=match):
        fb.enable(pipe, STABLE_DIFFUSION.make_small(), "LSL", adapters=[spec])
    assert before.differences(pipe) == []


@everywhere
def test_a_helper_of_the_users_is_adopted_and_given_back_as_it_was(family: Family) -> None:
    pipe, twin = family.pipe(), family.pipe().unet
    helper = helper_on(pipe)
    alone = family.run(pipe)
    before, state = PipelineSnapshot.of(pipe), {**vars(helper), "cached_output": dict(helper.cached_output)}
    functions = dict(helper.function_dict)
    with fb.enable(pipe, family.make_small(), "LLL") as blend:
        assert [adapter.name for adapter in blend.adapters] == ["adopted_deepcache"]
        assert torch.equal(family.run(pipe), alone)
        assert outcomes(blend) == "crrcrr"
    with fb.enable(pipe, family.make_small(), ROUND_TRIP) as blend, recorded(pipe.unet) as calls:
        first = family.run(pipe)
        assert outcomes(blend) == "crcccr"
        assert torch.equal(family.run(pipe), first)
    args, kwargs, output = calls[2]
    with torch.no_grad():
        assert torch.equal(twin(*args, **kwargs)[0], output)
    assert before.differences(pipe) == []
    assert vars(helper).keys() == state.keys()
    assert helper.function_dict == functions
    for name in ("cur_timestep", "start_timestep", "params", "cached_output"):
        assert getattr(helper, name) == state[name], name
    assert torch.equal(family.run(pipe), alone)
    helper.disable()


def test_a_helper_is_mirrored_to_the_small_denoiser_on_request() -> None:
    family = STABLE_DIFFUSION
    pipe, small = family.pipe(), family.make_small()
    with fb.enable(pipe, small, ROUND_TRIP, adapters=[SPEC]):
        expected = family.run(pipe)
    helper = helper_on(pipe)
    with fb.enable(pipe, small, ROUND_TRIP, adapters=["adopted_deepcache(mirror=True)"]) as blend:
        assert [adapter.name for adapter in blend.adapters] == ["adopted_deepcache"]
        assert torch.equal(family.run(pipe), expected)
    assert find_helper(pipe.unet) is helper
    assert find_helper(small) is None


def test_a_second_deepcache_is_refused() -> None:
    family = STABLE_DIFFUSION
    pipe, small = family.pipe(), family.make_small()
    helper = helper_on(pipe)
    with pytest.raises(fb.StackError, match=r"'adopted_deepcache' and 'deepcache' are two feature caches"):
        fb.enable(pipe, small, "LSL", adapters=["deepcache"])
    helper.disable()
    pipe.unet, small = small, pipe.unet
    helper_on(pipe)
    with pytest.raises(fb.StackError, match=r"denoiser S: a DeepCacheSDHelper is enabled on it already"):
        fb.enable(STABLE_DIFFUSION.pipe(), pipe.unet, "LSL", adapters=["deepcache"])
    assert small is not pipe.unet


def test_adopting_where_there_is_nothing_is_refused() -> None:
    with pytest.raises(fb.StackError, match=r"no DeepCacheSDHelper is enabled on the UNet2DConditionModel"):
        fb.enable(STABLE_DIFFUSION.pipe(), STABLE_DIFFUSION.make_small(), adapters=["adopted_deepcache"])


@pytest.mark.parametrize("when", ["before", "after"])
def test_under_model_offload(when: str) -> None:
    family = STABLE_DIFFUSION
    plain = family.run(family.pipe())
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), ROUND_TRIP, adapters=[SPEC]):
        expected = family.run(pipe)
    if when == "before":
        offload_models(pipe)
    with fb.enable(pipe, family.make_small(), ROUND_TRIP, adapters=[SPEC]) as blend:
        if when == "after":
            offload_models(pipe)
        for _ in range(2):
            assert torch.equal(family.run(pipe), expected)
            assert outcomes(blend) == "crcrcr"
    assert torch.equal(family.run(pipe), plain)


PAGE = (Path(__file__).resolve().parents[3] / "docs" / "caches" / "deepcache.md").read_text()


def test_the_example_of_its_page_runs_and_shows_the_cache_at_work(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile(example, "deepcache.md", "exec"), {"__name__": "example"})
    assert "reuse" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Forwards: "))


def test_the_tables_of_its_page_are_the_options() -> None:
    fields = [*dataclasses.fields(DeepCache), *dataclasses.fields(AdoptedDeepCache)]
    assert re.findall(r"^\| `(\w+)` \| `(.+?)` \|", PAGE, re.M) == [(f.name, repr(f.default)) for f in fields]
