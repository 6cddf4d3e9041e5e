"""``flowblend doctor --pair``: what a published pair needs at a size, and the placements that fit a GPU."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

import typer

from ..errors import UsageError
from ..manager import make_plugin_manager
from ..schedule import StageSchedule
from ..types import JsonObject, KeywordsView
from .options import find_preset, read_schedule

if TYPE_CHECKING:
    from ..sizing.pair import SizedPair

GIB = 2**30
_UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}


class PairQuestion(NamedTuple):
    """Question about what a pair needs.

    Attributes:
        call: arguments of the pipeline call that differ from the pair's.
        gpu_memory: as it was typed; ``None`` for that of the GPU here.
    """

    pair: str
    call: KeywordsView
    schedule: str | None
    early: float | None
    late: float | None
    gpu_memory: str | None


def read_memory(text: str) -> int:
    """Bytes of an amount of memory such as ``24GiB`` or ``80 GB``.

    Raises:
        UsageError: it is no such amount.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB)\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"--gpu-memory {text!r}: expected an amount with its unit, such as 24GiB or 80GB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _memory_here() -> int | None:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def answer(question: PairQuestion, as_json: bool) -> None:
    """Compute what is asked and print it. Exit code 1 where the GPU's memory is known and nothing fits it."""
    memory = read_memory(question.gpu_memory) if question.gpu_memory is not None else _memory_here()
    report = examine_pair(question, memory)
    typer.echo(json.dumps(report, indent=2) if as_json else "\n".join(_lines(report)))
    if memory is not None and report["cheapest"] is None:
        raise typer.Exit(1)


def examine_pair(question: PairQuestion, memory: int | None) -> JsonObject:
    """The report as JSON takes it; bytes and FLOPs are plain numbers.

    Args:
        question: what is asked.
        memory: of the GPU, in bytes; ``None`` where it is not known.

    Raises:
        UsageError: there is no such pair, or it cannot be computed at this size.
    """
    preset = find_preset(make_plugin_manager(), question.pair, None)
    assert preset is not None
    call = {**preset.call_defaults, **question.call}
    schedule = read_schedule(question.schedule, question.early, question.late, preset)
    from ..sizing.calls import VideoSize
    from ..sizing.pair import size_pair
    from ..sizing.placements import cheapest, placements

    size = VideoSize(call["height"], call["width"], call.get("num_frames", 1))
    num_steps, has_guidance = call["num_inference_steps"], call["guidance_scale"] > 1.0
    pair = size_pair(preset, size, has_guidance)
    found = placements(pair, schedule, num_steps)
    best = None if memory is None else cheapest(found, memory)
    return {
        "pair": preset.name,
        "size": size._asdict(),
        "num_steps": num_steps,
        "guidance": has_guidance,
        "components": {name: one._asdict() for name, one in {**pair.denoisers, **pair.around}.items()},
        "flops_per_call": {letter: one._asdict() for letter, one in pair.flops.items()},
        "calls_per_step": pair.calls_per_step,
        "schedules": _schedules(pair, schedule, num_steps),
        "gpu_memory": memory,
        "placements": [{**one._asdict(), "fits": None if memory is None else one.fits(memory)} for one in found],
        "cheapest": None if best is None else best.name,
    }


def _schedules(pair: SizedPair, schedule: StageSchedule, num_steps: int) -> JsonObject:
    """Expected share of large-only's time by schedule: its share of the FLOPs, which kernels follow only nearly."""
    asked = {text: StageSchedule.parse(text) for text in ("LLL", "LSS", "SSS")} | {schedule.text: schedule}
    return {
        text: {"steps": one.describe(num_steps), "share_of_large": pair.share_of_large(one, num_steps)}
        for text, one in asked.items()
    }


def _lines(report: JsonObject) -> list[str]:
    size = report["size"]
    lines = [
        f"{report['pair']}, {size['width']}x{size['height']}x{size['num_frames']}, {report['num_steps']} steps, "
        f"guidance {'on' if report['guidance'] else 'off'}. GiB, computed from configs in bfloat16, one video:",
        "",
        f"{'component':<14}{'billion':>9}{'weights':>9}{'in float8':>11}{'peak of a call':>16}{'TFLOPs a call':>15}",
    ]
    for name, one in report["components"].items():
        flops = report["flops_per_call"].get(name)
        lines.append(
            f"{name:<14}{one['num_parameters'] / 1e9:>9.2f}{one['weights'] / GIB:>9.2f}"
            f"{one['float8_weights'] / GIB if flops else one['weights'] / GIB:>11.2f}{one['peak'] / GIB:>16.2f}"
            + (f"{flops['total'] / 1e12:>15.1f}" if flops else "")
        )
    lines += ["", "Expected share of large-only's time, by FLOPs of the denoisers:"]
    lines += [f"  {text}: {one['share_of_large']:.0%} ({one['steps']})" for text, one in report["schedules"].items()]
    lines += ["", f"{'placement':<54}{'peak':>8}{'copied':>9}  fits"]
    marks = {True: "yes", False: "no", None: "?"}
    lines += [
        f"{one['name']:<54}{one['peak'] / GIB:>8.2f}{one['copied'] / GIB:>9.1f}  {marks[one['fits']]}"
        for one in report["placements"]
    ]
    lines.append("")
    if report["gpu_memory"] is None:
        return [*lines, "Which of them fits: say --gpu-memory, such as 24GiB."]
    has = f"{report['gpu_memory'] / GIB:.1f} GiB, of which a twentieth and 0.6 GiB are left for CUDA"
    if report["cheapest"] is None:
        return [*lines, f"None fits {has}. Ask for a smaller video."]
    best = next(one for one in report["placements"] if one["name"] == report["cheapest"])
    return [*lines, f"The cheapest that fits {has}: {best['name']}.", "", *best["code"].splitlines()]
