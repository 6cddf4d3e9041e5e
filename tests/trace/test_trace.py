"""The trace: a record for every call, read as a table and as JSON, also when nothing or not everything ran."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.errors import FlopCountError, FlowBlendError
from flowblend_plugins.schedule import Stage
from flowblend_plugins.step import StepContext
from flowblend_plugins.testing import (
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from flowblend_plugins.trace.flops import describe_inputs
from flowblend_plugins.trace.generation import CallRecord, Generation


def rows(summary: str) -> list[list[str]]:
    """The cells of the summary's table, without its heading; an outcome without a column occurred nowhere."""
    table = [
        [one.strip() for one in line.strip("|").split("|")] for line in summary.splitlines() if line.startswith("|")
    ]
    heads = ("steps", "stage", "by", "branches", "compute", "reuse", "predict", "ms", "ms each")
    return [[dict(zip(table[0], row, strict=True)).get(head, "0") for head in heads] for row in table[2:]]


class SendUncondToSmall:
    @fb.hookimpl
    def flowblend_route(self, step: Any) -> str | None:
        return "S" if step.branch == "uncond" else None


class Stumble(Exception):
    pass


def stumble(*call: Any, **arguments: Any) -> Any:
    raise Stumble("over a wire\nin the dark")


def test_every_call_is_recorded_where_it_stood() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        generate(pipe, 10)
    assert blend.trace.last is not None
    calls = blend.trace.last.calls
    assert [call.step.step_index for call in calls] == [index // 2 for index in range(20)]
    assert [call.step.branch for call in calls] == ["cond", "uncond"] * 10
    assert "".join(call.step.denoiser for call in calls) == "L" * 8 + "S" * 8 + "L" * 4
    sigmas = pipe.scheduler.sigmas.tolist()
    assert [call.step.sigma for call in calls] == [sigmas[index // 2] for index in range(20)]
    assert all(call.outcome == "compute" and 0.0 < call.time_ms < 60e3 for call in calls)
    assert [(step.step_index, step.denoiser) for step in blend.trace.last.entries] == [(0, "L"), (4, "S"), (8, "L")]


def test_summary_has_a_row_for_each_run_of_steps() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        generate(pipe, 10)
        summary = blend.trace.summary()
    assert [row[:7] for row in rows(summary)] == [
        ["1-4", "early", "L", "cond, uncond", "8", "0", "0"],
        ["5-8", "intermediate", "S", "cond, uncond", "8", "0", "0"],
        ["9-10", "late", "L", "cond, uncond", "4", "0", "0"],
    ]
    assert blend.trace.last is not None
    totals = [float(row[7]) for row in rows(summary)]
    assert sum(totals) == pytest.approx(sum(call.time_ms for call in blend.trace.last.calls), abs=0.3)
    assert "10 steps, 20 denoiser calls" in summary.splitlines()[0]
    assert "Forwards: L 12 compute; S 8 compute." in summary


def test_summary_gives_both_counts_of_flops_with_their_conventions() -> None:
    pipe = tiny_ltx_pipeline()
    with fb.enable(pipe, tiny_ltx_denoiser(), "LSL") as blend:
        generate(pipe, 10)
    flops = blend.trace.flops()
    linear, full, convention = blend.trace.summary().splitlines()[-3:]
    assert linear.startswith("FLOPs, linear layers only (the paper's count)")
    assert linear.endswith(f"{flops.linear / 1e6:.3g} MFLOPs, {flops.linear_fraction_of_large:.1%} of large-only.")
    assert full.startswith("FLOPs, full (attention products and convolutions too)")
    assert full.endswith(f"{flops.full / 1e6:.3g} MFLOPs, {flops.full_fraction_of_large:.1%} of large-only.")
    assert "2 FLOPs per multiply-add" in convention
    assert flops.linear_fraction_of_large != flops.full_fraction_of_large


def test_branches_answered_apart_and_outcomes_have_their_own_cells() -> None:
    pipe = tiny_wan_pipeline()
    small = tiny_wan_denoiser()
    with fb.enable(pipe, small, "LLL", plugins=[SendUncondToSmall()]) as blend:
        answered = iter(range(100))
        handle = small.register_forward_hook(
            lambda *call: blend.trace.reporter.report_outcome("reuse") if next(answered) % 2 else None
        )
        generate(pipe, 5)
        handle.remove()
        summary = blend.trace.summary()
    stages = [("1-2", "early", 2), ("3-4", "intermediate", 2), ("5", "late", 1)]
    assert [row[:4] for row in rows(summary)] == [
        [steps, stage, letter, branch]
        for steps, stage, _ in stages
        for letter, branch in (("L", "cond"), ("S", "uncond"))
    ]
    assert [row[4:7] for row in rows(summary)] == [
        ["2", "0", "0"], ["1", "1", "0"], ["2", "0", "0"], ["1", "1", "0"], ["1", "0", "0"], ["1", "0", "0"],
    ]  # fmt: skip
    assert "Forwards: L 5 compute; S 3 compute, 2 reuse." in summary
    assert blend.trace.last is not None
    assert blend.trace.last.num_forwards("S", "reuse") == 2


def test_a_branch_that_stops_ends_the_run() -> None:
    pipe = tiny_wan_pipeline()

    def stop_guidance(pipeline: Any, step_index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step_index == 2:
            pipeline._guidance_scale = 1.0
        return tensors

    with fb.enable(pipe, schedule="L:6") as blend:
        generate(pipe, 6, callback_on_step_end=stop_guidance)
    assert [row[:5] for row in rows(blend.trace.summary())] == [
        ["1-3", "intermediate", "L", "cond, uncond", "6"],
        ["4-6", "intermediate", "L", "cond", "3"],
    ]


def test_without_a_generation_it_says_what_to_do() -> None:
    with fb.enable(tiny_wan_pipeline(), schedule="LLL") as blend:
        assert blend.trace.summary() == "LLL: no generation yet. Call the pipeline, then ask again."
        with pytest.raises(FlowBlendError, match=r"this trace holds 0\. Call the pipeline first"):
            blend.trace.flops()
        assert blend.trace.to_dict()["generations"] == []


def test_a_failed_generation_reads_well() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        with pytest.raises(Stumble):
            generate(pipe, 10, callback_on_step_end=stumble)
        summary = blend.trace.summary()
        assert summary.splitlines()[0].endswith("failed with Stumble: over a wire")
        assert [row[:5] for row in rows(summary)] == [["1", "early", "L", "cond, uncond", "2"]]
        with pytest.raises(ValueError, match="divisible by 16"):
            generate(pipe, 10, height=33)
        assert "no denoiser call; failed with ValueError" in blend.trace.summary()
        with pytest.raises(FlopCountError, match="made no denoiser call"):
            blend.trace.flops()
        generate(pipe, 10)
        assert "failed" not in blend.trace.summary()
        assert "failed with Stumble" in blend.trace.summary(0)
        with pytest.raises(FlowBlendError, match=r"generation 3 was asked for, .* holds 3\. Ask for 0 to 2"):
            blend.trace.summary(3)
    assert "error" in blend.trace.to_dict()["generations"][1]["flops"]


def test_what_cannot_be_counted_is_said_in_the_summary() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, schedule="LLL") as blend:
        generate(pipe, 4, attention_kwargs={"noise": torch.Generator()})
    assert len(rows(blend.trace.summary())) == 3
    assert "cannot be counted: one of its inputs is a Generator" in blend.trace.summary().splitlines()[-1]


def test_time_saved_stands_beside_calls_saved() -> None:
    stage = Stage.INTERMEDIATE
    steps = [StepContext(i, 5, 1.0, 1.0, stage, "LLSSS"[i], None, 0) for i in range(5)]
    outcomes = ["compute", "reuse", "compute", "reuse", "predict"]
    times = [10.0, 4.0, 3.0, 1.0, 2.0]
    inputs = describe_inputs((), {})
    calls = [CallRecord(s, o, t, inputs) for s, o, t in zip(steps, outcomes, times, strict=True)]  # type: ignore[arg-type]
    saved = Generation(0, calls).saved()
    assert saved == (3, 0.6, (10.0 - 4.0) + (3.0 - 1.0) + (3.0 - 2.0), 9.0 / 29.0)
    assert Generation(0, calls[:1]).saved() == (0, 0.0, 0.0, 0.0)
    assert math.isnan(Generation(0, calls[1:2]).saved().time_ms)


def test_the_summary_says_what_a_cache_saved_only_where_there_is_one() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(
        pipe, tiny_wan_denoiser(), "LSL", adapters=["first_block_cache(threshold=1000, denoisers='L')"]
    ) as blend:
        generate(pipe)
        assert re.search(r"Not computed: \d+% of the calls, which saved -?\d+% of the time", blend.trace.summary())
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        generate(pipe)
        assert "Not computed" not in blend.trace.summary()


def test_json_holds_all_of_it() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        generate(pipe, 10)
    read = json.loads(json.dumps(blend.trace.to_dict(), allow_nan=False))
    assert read["schedule"] == "LSL"
    assert read["denoisers"] == {"L": "WanTransformer3DModel", "S": "WanTransformer3DModel"}
    (generation,) = read["generations"]
    assert blend.trace.last is not None
    assert len(generation["calls"]) == 20
    for written, call in zip(generation["calls"], blend.trace.last.calls, strict=True):
        assert (written["step_index"], written["sigma"]) == (call.step.step_index, call.step.sigma)
        assert (written["denoiser"], written["branch"], written["stage"]) == (
            call.step.denoiser,
            call.step.branch,
            call.step.stage.value,
        )
        assert (written["outcome"], written["time_ms"]) == ("compute", call.time_ms)
    assert [entry["step_index"] for entry in generation["entries"]] == [0, 4, 8]
    assert generation["flops"] == blend.trace.flops()._asdict()


def test_json_has_no_infinity() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, schedule="LLL") as blend:
        generate(pipe, 2)
    generation = blend.trace.generations[0]
    first = generation.calls[0]
    generation.calls[0] = first._replace(step=first.step._replace(sigma=math.inf), time_ms=math.nan)
    call = json.loads(json.dumps(blend.trace.to_dict(), allow_nan=False))["generations"][0]["calls"][0]
    assert (call["sigma"], call["time_ms"]) == (None, None)
    assert rows(blend.trace.summary())[0][7:] == ["-", "-"]


def test_summary_prints_on_any_terminal() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        generate(pipe, 10)
    summary = blend.trace.summary()
    assert summary.isascii()
    assert all(line == line.rstrip() and len(line) <= 140 for line in summary.splitlines())


def test_a_trace_keeps_no_tensor() -> None:
    pipe = tiny_ltx_pipeline()
    with fb.enable(pipe, tiny_ltx_denoiser(), "LSL") as blend:
        generate(pipe, 4)

    def tensors(value: Any) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, dict):
            return [t for item in value.values() for t in tensors(item)]
        return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []

    assert blend.trace.last is not None
    assert all(not tensors(call) for call in blend.trace.last.calls)
    assert blend.trace.last.calls[0].inputs.kwargs["num_frames"] == 3  # LTX is counted from plain values too


@pytest.mark.skipif(not torch.cuda.is_available(), reason="device times need a CUDA device")
def test_device_times_add_up_to_the_time_of_the_generation() -> None:
    pipe = tiny_wan_pipeline().to("cuda")
    text = torch.randn(1, 8, 16, device="cuda")
    with fb.enable(pipe, tiny_wan_denoiser().to("cuda"), "LSL") as blend:
        generate(pipe, 10, prompt_embeds=text, negative_prompt_embeds=text)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        generate(pipe, 10, prompt_embeds=text, negative_prompt_embeds=text)
        after.record()
        torch.cuda.synchronize()
    assert blend.trace.last is not None
    assert 0.0 < sum(call.time_ms for call in blend.trace.last.calls) <= before.elapsed_time(after)


def test_an_empty_generation_saved_nothing() -> None:
    assert Generation(0).saved() == (0, 0.0, 0.0, 0.0)


def test_the_last_hundred_generations_are_kept_and_indices_go_on() -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, schedule="LLL") as blend:
        trace = blend.trace
        assert trace.max_generations == 100
        device = pipe._execution_device
        for number in range(103):  # what the router does at each, without the hundred videos
            assert trace.begin(device) == number
        assert [generation.index for generation in trace.generations] == [*range(3, 103)]
        generate(pipe, 2)
        assert trace.last is not None
        assert (trace.last.index, trace.last.calls[0].step.generation) == (103, 103)
        assert trace.flops(103) == trace.flops() == trace.flops(-1)
        assert trace.to_dict()["generations"][-1]["index"] == 103
        assert trace.summary(103).startswith("Generation 103, ")
        with pytest.raises(FlowBlendError, match=r"generation 2 was asked for, .* Ask for 4 to 103"):
            trace.flops(2)
        trace.clear()
        assert (trace.last, trace.generations) == (None, [])
        assert "no generation yet" in trace.summary()
        trace.max_generations = None
        generate(pipe, 2)
        assert [generation.index for generation in trace.generations] == [104]


def test_a_trace_may_be_cleared_in_the_middle_of_a_generation() -> None:
    pipe = tiny_wan_pipeline()
    expected = generate(pipe, 3)

    def clear(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        blend.trace.clear()
        return tensors

    with fb.enable(pipe, schedule="LLL") as blend:
        assert torch.equal(generate(pipe, 3, callback_on_step_end=clear), expected)
        assert blend.trace.generations == []
