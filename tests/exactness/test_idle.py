"""Idle denoisers on the CPU: who is on the device when, the same latents, and options for the small one's loading."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import WanTransformer3DModel

import flowblend_plugins as fb
from flowblend_plugins.pairs.precision import precision_of
from flowblend_plugins.pipelines import idle
from flowblend_plugins.testing import tiny_wan_denoiser
from tests.exactness.pipelines import FAMILIES

WAN = FAMILIES["wan"]
BOTH = [WAN, FAMILIES["ltx"]]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def num_bytes(denoiser: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in denoiser.parameters())


class CountedMover:
    """In the place of a device: it knows who is on it, refuses to compute what is not, and keeps the peak."""

    made: ClassVar[list[CountedMover]] = []

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", 0)
        self.there: dict[int, Any] = {}
        self.away: set[int] = set()
        self.peak, self.events = 0, list[tuple[str, int]]()
        self.made.append(self)

    def is_there(self, denoiser: Any) -> bool:
        if id(denoiser) not in self.away and id(denoiser) not in self.there:
            self.there[id(denoiser)] = denoiser  # as it came
        return id(denoiser) in self.there

    def bring(self, denoiser: Any) -> None:
        self.away.discard(id(denoiser))
        self.there[id(denoiser)] = denoiser
        self.peak = max(self.peak, sum(map(num_bytes, self.there.values())))
        self.events.append(("bring", id(denoiser)))

    def bring_ahead(self, denoiser: Any) -> None:
        self.bring(denoiser)
        self.events[-1] = ("ahead", id(denoiser))

    def wait(self) -> None:
        pass

    def send_away(self, denoiser: Any) -> None:
        self.there.pop(id(denoiser))
        self.away.add(id(denoiser))
        self.events.append(("away", id(denoiser)))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[CountedMover]:
    CountedMover.made.clear()
    monkeypatch.setattr(idle, "Mover", CountedMover)
    return CountedMover.made


def watched(denoiser: Any, movers: list[CountedMover], calls: list[str], letter: str) -> None:
    """Fail where a denoiser computes that is not on the device."""

    def see(module: object, args: object) -> None:
        assert id(module) in movers[-1].there, f"{letter} was called while it was on the CPU"
        calls.append(letter)

    denoiser.register_forward_pre_hook(see)


@pytest.mark.parametrize("family", BOTH, ids=lambda family: family.name)
@pytest.mark.parametrize("how", ["cpu", "prefetch"])
def test_one_is_on_the_device_at_a_time(family: Any, how: str, stand_in: list[CountedMover]) -> None:
    pipe, small = family.pipe(), family.make_small()
    with fb.enable(pipe, small, "LSL"):
        expected = family.run(pipe)
    calls: list[str] = []
    watched(pipe.transformer, stand_in, calls, "L")
    watched(small, stand_in, calls, "S")
    large_bytes, small_bytes = num_bytes(pipe.transformer), num_bytes(small)
    with fb.enable(pipe, small, "LSL", idle=how):
        assert torch.equal(family.run(pipe), expected)
        assert torch.equal(family.run(pipe), expected)
        (mover,) = stand_in
        assert mover.there.keys() == {id(pipe.transformer)}  # between generations
        assert {"L", "S"} == {*calls}
        if how == "cpu":
            assert mover.peak == large_bytes
            assert not any(what == "ahead" for what, _ in mover.events)
        else:
            assert mover.peak == large_bytes + small_bytes  # while the next one is brought
            ahead = [who for what, who in mover.events if what == "ahead"]
            assert ahead == 2 * [id(small), id(pipe.transformer)]
            assert not any(what == "bring" for what, _ in mover.events)
    assert mover.there.keys() == {id(pipe.transformer), id(small)}  # disabled: where they came from


@pytest.mark.parametrize("adapter", ["guided_refresh(threshold=0.2)", "corrected", "forecast", "branch_routing"])
def test_adapters_that_ask_either_denoiser_are_served(adapter: str, stand_in: list[CountedMover]) -> None:
    pipe, small = WAN.pipe(), WAN.make_small()
    with fb.enable(pipe, small, "LSL", adapters=[adapter]):
        expected = WAN.run(pipe)
    watched(pipe.transformer, stand_in, [], "L")
    watched(small, stand_in, [], "S")
    with fb.enable(pipe, small, "LSL", adapters=[adapter], idle="cpu"):
        assert torch.equal(WAN.run(pipe), expected)


def test_after_an_error_the_large_one_is_back(stand_in: list[CountedMover]) -> None:
    pipe, small = WAN.pipe(), WAN.make_small()

    def fail(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise RuntimeError("in the small stage")
        return values

    plain = WAN.run(pipe)
    with fb.enable(pipe, small, "LSL", idle="cpu"):
        with pytest.raises(RuntimeError, match="in the small stage"):
            WAN.run(pipe, callback_on_step_end=fail)
        assert stand_in[-1].there.keys() == {id(pipe.transformer)}
    assert torch.equal(WAN.run(pipe), plain)


def test_a_callback_that_calls_the_large_one_finds_it(stand_in: list[CountedMover]) -> None:
    pipe, small = WAN.pipe(), WAN.make_small()
    watched(pipe.transformer, stand_in, calls := [], "L")
    inputs: dict[str, Any] = {}
    pipe.transformer.register_forward_pre_hook(lambda module, args, kwargs: inputs.update(kwargs), with_kwargs=True)

    def call(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            calls.append("callback")
            pipe.transformer(**inputs)
        return values

    with fb.enable(pipe, small, "LSL", idle="cpu"):
        WAN.run(pipe, callback_on_step_end=call)
    assert calls[calls.index("callback") + 1] == "L"


def test_what_cannot_be_is_refused_and_what_does_nothing_is_said() -> None:
    pipe, small = WAN.pipe(), WAN.make_small()
    with pytest.raises(fb.RoutingError, match="expected one of 'keep', 'cpu', 'prefetch'"):
        fb.enable(pipe, small, idle="disk")
    with (
        pytest.warns(UserWarning, match="has no effect: the large denoiser is on the CPU"),
        fb.enable(pipe, small, idle="cpu"),
    ):
        pass
    pipe.enable_model_cpu_offload(device="cpu")
    with pytest.raises(fb.RoutingError, match="offloaded already"):
        fb.enable(pipe, small, idle="cpu")
    with fb.enable(pipe, small):
        WAN.run(pipe)


def test_offloading_after_enable_is_refused_at_the_call(stand_in: list[CountedMover]) -> None:
    pipe = WAN.pipe()
    with fb.enable(pipe, WAN.make_small(), idle="cpu"):
        pipe.enable_model_cpu_offload(device="cpu")
        with pytest.raises(fb.RoutingError, match="offloaded already"):
            WAN.run(pipe)
        pipe.remove_all_hooks()
        WAN.run(pipe)


def test_keep_moves_nothing(stand_in: list[CountedMover]) -> None:
    pipe = WAN.pipe()
    with fb.enable(pipe, WAN.make_small()):
        WAN.run(pipe)
    assert stand_in == []


def test_a_small_denoiser_from_a_folder_takes_options(tmp_path: Path) -> None:
    tiny_wan_denoiser(layers=3).save_pretrained(tmp_path)
    pipe = WAN.pipe().to(torch.bfloat16)
    with pytest.warns(UserWarning, match="L in bfloat16, S in float8_e4m3fn"):
        blend = fb.enable(pipe, tmp_path, small_options={"storage_dtype": torch.float8_e4m3fn})
    with blend:
        assert precision_of(blend.denoisers["S"]) == "float8_e4m3fn"
        cast: Any = WanTransformer3DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        cast.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        latents = WAN.run(pipe)
    with pytest.warns(UserWarning, match="different precisions"), fb.enable(pipe, cast):
        assert torch.equal(WAN.run(pipe), latents)
    with pytest.raises(fb.PairError, match="is loaded already"):
        fb.enable(pipe, cast, small_options={"storage_dtype": torch.float8_e4m3fn})


def test_equal_precisions_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fb.enable(WAN.pipe(), WAN.make_small()).disable()


@needs_cuda
@pytest.mark.parametrize("how", ["cpu", "prefetch"])
def test_on_cuda(how: str) -> None:
    pipe, small = WAN.pipe().to("cuda"), WAN.make_small().to("cuda")
    with fb.enable(pipe, small, "LSL"):
        expected = WAN.run(pipe)
    with fb.enable(pipe, small, "LSL", idle=how):
        assert small.device.type == "cpu"
        assert torch.equal(WAN.run(pipe), expected)
        assert (pipe.transformer.device.type, small.device.type) == ("cuda", "cpu")
    assert small.device.type == "cuda"
