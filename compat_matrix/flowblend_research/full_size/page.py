"""The page on what was measured at full size, from the JSON that was written."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from flowblend_plugins.types import JsonObject, JsonView

from ..tables import shown, table
from .measure import MEASUREMENTS
from .session import NUM_STEPS

GIB = 2**30


def to_markdown(record: JsonView) -> str:
    """Write the page from the record, of which ``pairs`` may be empty: then nothing was run."""
    lines = [
        "# Measured at full size",
        "",
        "Made by `make full-size`, which writes this page and its data beside it; not edited by hand.",
        "",
        "The denoisers have the published sizes and random bfloat16 weights, so that nothing is downloaded: times and "
        "memory are those of the real ones, videos are noise. Guidance is off, so that a step is one forward; with it "
        "every time doubles and every ratio stays. Text encoder and VAE are not loaded.",
    ]
    if not record["pairs"]:
        lines += ["", "**Not run**: it needs a CUDA GPU with 80 GB of memory or more, which nobody has given it yet."]
    for own in record["pairs"].values():
        lines += ["", f"## {own['title']}", "", *_pair(own)]
    return "\n".join(lines) + "\n"


def _pair(own: JsonView) -> Iterator[str]:
    environment, measured = own["environment"], own["measured"]
    memory = environment.get("memory_bytes")
    yield (
        f"Measured {environment['date'][:10]} on {environment['device']}"
        + (f" ({memory / GIB:.0f} GiB)" if memory else "")
        + f", torch {environment['torch']}, diffusers {environment['diffusers']}: `{own['command']}`."
    )
    if "weights" in measured:
        sizes = (
            f"{letter} {one['num_parameters'] / 1e9:.2f} billion weights, {one['bytes'] / GIB:.2f} GiB"
            for letter, one in measured["weights"].items()
        )
        yield f"Denoisers: {'; '.join(sizes)}."
    for name, section in _SECTIONS.items():
        if name in measured or (name == "summary" and own["summary"]):
            yield ""
            yield from section(own)
    broken = [
        f"{letters} in {name}"
        for name, one in measured.items()
        for letters, made in one.items()
        if isinstance(made, dict) and made.get("is_finite") is False
    ]
    if broken:
        yield from ("", f"**Not finite**: the latents of {', '.join(broken)}, so that their times may not hold.")
    if own["not_measured"]:
        yield from ("", "### Not measured", "")
        yield from (f"- **{name}**: {reason}" for name, reason in own["not_measured"].items())
    left = [one.name for one in MEASUREMENTS if one.name not in {**measured, **own["not_measured"]}]
    if left:
        yield from ("", f"**Incomplete**: the run ended before {', '.join(left)}.")


def _rounds(own: JsonView) -> Iterator[str]:
    summary = own["summary"]
    forward = summary["forward_s"]
    yield f"### Schedules of {NUM_STEPS} steps, {_size(own, '480p')}"
    yield ""
    heads = (
        "schedule",
        "steps",
        "seconds",
        "x faster than LLL",
        "predicted",
        "of predicted",
        "by FLOPs: full",
        "linear",
    )
    yield from table(heads, (_schedule(letters, one) for letters, one in summary["schedules"].items()))
    yield ""
    yield (
        f"Medians of {summary['num_rounds']} rounds in which every schedule ran once, with least and greatest ratio. "
        f"*Predicted* is from single forwards in the same rounds: L {forward['L']:.4g} s, S {forward['S']:.4g} s. "
        f"The first call after a switch was longer than its denoiser's others by {_median(summary['switch_ms'])} ms."
    )
    extrapolated = summary["extrapolated"]
    whole = ", ".join(f"{letters} {seconds:.4g} s" for letters, seconds in extrapolated["denoiser_s"].items())
    yield (
        f"Extrapolated, not measured: the denoisers of a whole generation ({extrapolated['num_steps']} steps, "
        f"{extrapolated['guidance_branches']} guidance branches) take {whole}."
    )


def _schedule(letters: str, one: JsonView) -> Sequence[str]:
    least, greatest = one["speedup_range"]
    return (
        letters,
        one["steps"],
        f"{one['time_s']:.4g}",
        f"{one['speedup']:.3f} ({least:.3f}-{greatest:.3f})",
        f"{one['predicted_speedup']:.3f}",
        f"{one['fraction_of_predicted']:.3f}",
        shown(one.get("speedup_by_full_flops"), ".3f"),
        shown(one.get("speedup_by_linear_flops"), ".3f"),
    )


def _routing(own: JsonView) -> Iterator[str]:
    found = own["measured"]["routing"]
    yield (
        f"**Routing** adds {_median(found['added_us_per_call'])} us to a call (median of "
        f"{len(found['added_us_per_call'])} pairs of generations; a video of {_size(own, 'short')}, plain and enabled "
        "in turn)."
    )


def _forecast(own: JsonView) -> Iterator[str]:
    found = own["measured"]["forecast"]
    yield (
        f"**A forecast step** takes {shown(found['saved_ms'], '.4g')} ms beside {found['computed_ms']:.4g} ms of a "
        "computed one of the large denoiser."
    )


def _caches(own: JsonView) -> Iterator[str]:
    found = own["measured"]["caches"]
    yield from (f"### Caches on the small denoiser, {NUM_STEPS} steps, {_size(own, '480p')}", "")
    rows = (
        (name, shown(one["computed_ms"], ".4g"), shown(one["saved_ms"], ".4g"), str(one["num_saved"]), _gib(one))
        for name, one in found.items()
        if "refused" not in one
    )
    yield from table(("cache", "ms, computed", "ms, reused", "calls reused", "peak GiB"), rows)
    refused = [(name, one["refused"]) for name, one in found.items() if "refused" in one]
    if refused:
        yield ""
        yield from (f"- `{name}` was refused: {reason}" for name, reason in refused)


def _single_forwards(own: JsonView) -> Iterator[str]:
    found = own["measured"]["720p"]
    flops = own["measured"].get("flops", {}).get("720p", {})
    yield from (f"### Single forwards, {_size(own, '720p')}", "")
    rows = []
    for letter in "LS":
        one, full = found[letter], flops.get(letter, {}).get("full")
        seconds = statistics.median(one["times_s"])
        times = ", ".join(f"{value:.4g}" for value in one["times_s"])
        rows.append((letter, times, shown(full and full / seconds / 1e12, ".0f"), _gib(one)))
    yield from table(("denoiser", "seconds", "TFLOP/s (full count)", "peak GiB"), rows)


def _compiled(own: JsonView) -> Iterator[str]:
    found, forward = own["measured"]["compiled"], own["summary"].get("forward_s", {})
    yield from (f"### Compiled block by block ({found['backend']})", "")
    rows = [
        (
            letter,
            shown(forward.get(letter), ".4g"),
            f"{_median(found[letter]['times_s'])}",
            f"{found[letter]['first_s']:.3g}",
        )
        for letter in "LS"
    ]
    yield from table(("denoiser", "eager forward, s", "compiled, s", "first call, s"), rows)
    eager = own["summary"].get("schedules", {}).get("LSL", {}).get("time_s")
    yield from (
        "",
        f"LSL takes {found['LSL'][-1]['time_s']:.4g} s compiled (second run), {shown(eager, '.4g')} s eager.",
    )


def _placements(own: JsonView) -> Iterator[str]:
    yield from (f"### Placements, a large and a small step, {_size(own, '480p')}", "")
    rows = ((name, _gib(one), f"{one['time_s']:.4g}") for name, one in own["measured"]["placements"].items())
    yield from table(("placement", "peak GiB", "seconds"), rows)


_SECTIONS = {
    "summary": _rounds,
    "routing": _routing,
    "forecast": _forecast,
    "caches": _caches,
    "720p": _single_forwards,
    "compiled": _compiled,
    "placements": _placements,
}


def _size(own: JsonView, name: str) -> str:
    call: JsonObject = own["calls"][name]
    return f"{call['width']}x{call['height']}x{call['num_frames']}"


def _gib(one: JsonView) -> str:
    peak = one.get("peak_bytes")
    return "-" if peak is None else f"{peak / GIB:.2f}"


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4g}" if values else "-"
