"""At full published size, from shapes alone: the totals of the FlowBlending paper (arXiv 2512.24724) and our own table.

The paper's totals come out by counting linear layers only, 2 FLOPs per multiply-add, one guidance branch a step for WAN
and two for LTX. ``docs/flops.md`` explains the conventions.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from flowblend_plugins.schedule import StageSchedule
from flowblend_plugins.step import StepContext
from flowblend_plugins.trace.flops import FlopCounter, ForwardFlops, describe_inputs
from flowblend_plugins.trace.generation import GenerationFlops
from flowblend_plugins.trace.trace import Trace

TERA = 1e12
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "flops.md").read_text()


@cache
def denoiser(name: str) -> Any:
    """A published architecture without weights; what is not given is diffusers' default, which is theirs."""
    with torch.device("meta"):
        if name == "wan 1.3B":
            return WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30)
        if name == "wan 14B":
            return WanTransformer3DModel(num_attention_heads=40, attention_head_dim=128, ffn_dim=13824, num_layers=40)
        if name == "ltx 2B":
            return LTXVideoTransformer3DModel(attention_head_dim=64, cross_attention_dim=2048, num_layers=28)
        return LTXVideoTransformer3DModel(attention_head_dim=128, cross_attention_dim=4096, num_layers=48)


def wan_call(width: int, height: int, num_frames: int) -> dict[str, Any]:
    """One guidance branch, as WanPipeline calls: 512 text tokens."""
    return {
        "hidden_states": torch.empty(1, 16, (num_frames - 1) // 4 + 1, height // 8, width // 8, device="meta"),
        "timestep": torch.empty(1, dtype=torch.int64, device="meta"),
        "encoder_hidden_states": torch.empty(1, 512, 4096, device="meta"),
        "attention_kwargs": None,
        "return_dict": False,
    }


def ltx_call(
    frames: int, height: int, width: int, branches: int = 1, per_token_timestep: bool = True
) -> dict[str, Any]:
    """On a latent of this size, as LTXConditionPipeline calls (a timestep for every token), or else LTXPipeline."""
    tokens = frames * height * width
    return {
        "hidden_states": torch.empty(branches, tokens, 128, device="meta"),
        "timestep": torch.empty(branches, *([tokens] if per_token_timestep else []), device="meta"),
        "encoder_hidden_states": torch.empty(branches, 256, 4096, device="meta"),
        "encoder_attention_mask": torch.empty(branches, 256, device="meta"),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (0.32, 32, 32),
        "return_dict": False,
    }


WAN_CALLS = {
    "832x480x61": wan_call(832, 480, 61),
    "832x480x81": wan_call(832, 480, 81),
    "1280x720x81": wan_call(1280, 720, 81),
}
LTX_608x352 = (9, 11, 19)  # 1,881 tokens
LTX_832x480x81 = (11, 15, 26)


@cache
def forward(name: str, setting: str) -> ForwardFlops:
    calls = {
        "ltx 608x352": ltx_call(*LTX_608x352),
        "ltx 832x480x81": ltx_call(*LTX_832x480x81, per_token_timestep=False),
    }
    call = (calls | WAN_CALLS)[setting]
    return FlopCounter.of(denoiser(name)).count(describe_inputs((), call))  # which traces of this process share


@pytest.mark.parametrize(
    ("setting", "tokens", "small", "large", "small_linear", "small_attention", "large_linear", "large_attention"),
    [
        ("832x480x61", 24960, "wan 1.3B", "wan 14B", 62.6, 117.2, 599, 521),
        ("832x480x81", 32760, "wan 1.3B", "wan 14B", 82.1, 200.9, 785, 893),
        ("1280x720x81", 75600, "wan 1.3B", "wan 14B", 189, 1061, 1810, 4714),
        ("ltx 608x352", 1881, "ltx 2B", "ltx 13B", 6.43, 0.92, 43.7, 3.16),
    ],
)
def test_one_forward(
    setting: str, tokens: int, small: str, large: str, small_linear: float, small_attention: float,
    large_linear: float, large_attention: float,
) -> None:  # fmt: skip
    if setting in WAN_CALLS:
        _, _, frames, height, width = WAN_CALLS[setting]["hidden_states"].shape
        assert frames * (height // 2) * (width // 2) == tokens
    counted_small, counted_large = forward(small, setting), forward(large, setting)
    assert counted_small.linear / TERA == pytest.approx(small_linear, rel=3e-3)
    assert counted_small.attention / TERA == pytest.approx(small_attention, rel=3e-3)
    assert counted_large.linear / TERA == pytest.approx(large_linear, rel=3e-3)
    assert counted_large.attention / TERA == pytest.approx(large_attention, rel=3e-3)


@pytest.mark.parametrize(
    ("name", "setting", "tera"),
    [
        ("wan 14B", "832x480x81", 1678.4),
        ("wan 1.3B", "832x480x81", 283.0),
        ("wan 14B", "1280x720x81", 6523),
        ("wan 1.3B", "1280x720x81", 1250),
        ("ltx 13B", "ltx 832x480x81", 112.9),
        ("ltx 2B", "ltx 832x480x81", 18.7),
    ],
)
def test_one_call_in_full(name: str, setting: str, tera: float) -> None:
    assert forward(name, setting).total / TERA == pytest.approx(tera, rel=1e-3)


def test_it_is_what_torch_counts_on_the_meta_device() -> None:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        denoiser("wan 1.3B")(**WAN_CALLS["832x480x61"])
    assert forward("wan 1.3B", "832x480x61").total == counter.get_total_flops()


class Generations:
    """One trace at full size, of generations that are recorded call by call as the router does, and never run."""

    def __init__(self, large: str, small: str, call: dict[str, Any]) -> None:
        self._call = call
        self._trace = Trace({"L": denoiser(large), "S": denoiser(small)}, StageSchedule.parse("LSL"))

    def flops(self, schedule: StageSchedule, num_inference_steps: int) -> GenerationFlops:
        self._trace.begin(torch.device("cpu"))
        for index, (letter, stage) in enumerate(schedule.assignments(num_inference_steps)):
            step = StepContext(index, num_inference_steps, None, None, stage, letter, None, 0)
            self._trace.reporter.record(step, self._trace.reporter.start(step), (), self._call)
        self._trace.reporter.end(None)
        return self._trace.flops()


@pytest.fixture(scope="module")
def wan() -> Generations:
    return Generations("wan 14B", "wan 1.3B", WAN_CALLS["832x480x61"])


@pytest.fixture(scope="module")
def ltx() -> Generations:
    return Generations("ltx 13B", "ltx 2B", ltx_call(*LTX_608x352, branches=2))


@pytest.mark.parametrize(
    ("letters", "early", "late", "published"),
    [
        ("SSS", 0.4, 0.2, 3129),
        ("LSS", 0.4, 0.2, 13858),
        ("LSL", 0.4, 0.2, 19222),
        ("SLL", 0.2, 0.2, 24586),  # 10 small and 40 large steps: its early stage is half as long as the others'
        ("LLL", 0.4, 0.2, 29950),
    ],
)
def test_published_wan_totals(wan: Generations, letters: str, early: float, late: float, published: float) -> None:
    counted = wan.flops(StageSchedule.named(letters, early, late), 50)
    assert counted.linear / TERA == pytest.approx(published, rel=1e-3)
    assert counted.linear_fraction_of_large == pytest.approx(published / 29950, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "num_inference_steps", "published"),
    [
        ("LLL", 20, 1748),
        ("L:5,S:11,L:4", 20, 928),  # 9 of 20 steps; how they are split is not published, and does not matter here
        ("SSS", 20, 257),
        ("LLL", 40, 3496),
    ],
)
def test_published_ltx_totals(ltx: Generations, schedule: str, num_inference_steps: int, published: float) -> None:
    counted = ltx.flops(StageSchedule.parse(schedule), num_inference_steps)
    assert counted.linear / TERA == pytest.approx(published, rel=1e-3)


def test_published_ltx_totals_with_the_distilled_small_model() -> None:
    """Distilled runs take 8 steps of one branch; LDL is 20 of 40 large steps with two, and half of the 8."""
    large, distilled = forward("ltx 13B", "ltx 608x352").linear, forward("ltx 2B", "ltx 608x352").linear
    assert 8 * distilled / TERA == pytest.approx(51, rel=1e-2)  # published in whole TFLOPs
    assert (20 * 2 * large + 4 * distilled) / TERA == pytest.approx(1774, rel=1e-3)


def test_the_headline_is_the_share_that_is_left(ltx: Generations) -> None:
    half = ltx.flops(StageSchedule.parse("L:10,S:20,L:10"), 40)
    assert round(100 * half.linear_fraction_of_large, 2) == 57.35
    ratio = forward("ltx 2B", "ltx 608x352").linear / forward("ltx 13B", "ltx 608x352").linear
    savings = {round(100 * small_steps * (1 - ratio) / 40, 2) for small_steps in range(41)}
    assert 42.65 in savings
    assert 57.35 not in savings


def page_rows(first_cells: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in re.findall(rf"^\| (?:{first_cells}).*\|$", PAGE, re.M)
    ]


def test_the_page_gives_the_forwards_as_counted() -> None:
    rows = page_rows(r"WAN \d|LTX \d")
    assert len(rows) == 4
    for setting, _, small_linear, small_attention, large_linear, large_attention, ratio in rows:
        family, size = setting.split(",")[0].split()
        small, large = ("wan 1.3B", "wan 14B") if family == "WAN" else ("ltx 2B", "ltx 13B")
        key = size if family == "WAN" else f"ltx {size}"
        counted_small, counted_large = forward(small, key), forward(large, key)
        assert [small_linear, small_attention, large_linear, large_attention] == [
            f"{count / TERA:.1f}" for count in (*counted_small[:2], *counted_large[:2])
        ]
        assert ratio == f"{counted_small.total / counted_large.total:.3f}"


def test_the_page_gives_the_totals_as_counted(wan: Generations, ltx: Generations) -> None:
    rows = page_rows(r"(?:WAN|LTX) \|")
    assert len(rows) == 9
    for pair, letters, steps, published, linear, full in rows:
        large_steps, small_steps = map(int, steps.split("+"))
        runs = [f"{letter}:{count}" for letter, count in (("L", large_steps), ("S", small_steps)) if count]
        schedule = StageSchedule.parse(",".join(runs))
        counted = (wan if pair == "WAN" else ltx).flops(schedule, large_steps + small_steps)
        assert (linear, full) == (f"{counted.linear / TERA:.1f}", f"{counted.full / TERA:.1f}"), (pair, letters)
        assert counted.linear / TERA == pytest.approx(float(published), rel=1e-3)


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile(example, "flops.md", "exec"), {})
    assert "of large-only" in capsys.readouterr().out
