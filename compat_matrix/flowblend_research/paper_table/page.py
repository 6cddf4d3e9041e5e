"""The table as Markdown, from the JSON that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowblend_plugins.types import JsonObject

from ..tables import shown, table
from .columns import CONTROL

_HEADINGS = (
    "schedule",
    "which steps",
    "time: x faster than its LLL",
    "than LLL at {baseline}",
    "GFLOPs linear (share of its LLL)",
    "full",
    "published, linear",
    "PSNR to its LLL, dB",
    "to LLL at {baseline}",
    "alignment",
    "Frechet distance",
)


def to_markdown(record: JsonObject) -> str:
    """Write the page from the record.

    Args:
        record: as :func:`flowblend_research.paper_table.__main__.make_table` writes it.
    """
    baseline = record["columns"][0]["name"]
    lines = [
        "# A table like the paper's",
        "",
        "Made by `make paper-table`, which writes this page and [its data](paper_table.json); not edited by hand.",
        "",
        *_preamble(record),
    ]
    if record["absent"]:
        missing = ", ".join(absent["name"] for absent in record["absent"])
        lines += ["", f"**Incomplete**: not measured are {missing} (the reasons are below)."]
    for column in record["columns"]:
        lines += ["", f"## {column['name']}", "", *_column(record, column, baseline)]
    if record["absent"]:
        lines += ["", "## Not measured", ""]
        lines += [f"- **{absent['name']}**: {absent['reason']}" for absent in record["absent"]]
    lines += ["", *_reading(record, baseline)]
    return "\n".join(lines) + "\n"


def _preamble(record: JsonObject) -> list[str]:
    environment = record["environment"]
    return [
        f"FlowBlending (arXiv 2512.24724) on the [embedded pair](reference_pair.md): {record['num_prompts']} held-out "
        f"prompts, guidance {record['guidance_scale']:g} unless a column says otherwise, early .4 and late .2 of the "
        f"steps. Measured {environment['date'][:10]} on {environment['device']}, {environment['num_threads']} thread, "
        f"torch {environment['torch']}, diffusers {environment['diffusers']}.",
        "",
        f"Times are medians of {record['num_repeats']} rounds in which every cell of the whole table ran once, with "
        "the least and greatest ratio in brackets; prompt encoding and denoising, no decoding. FLOPs are of one video, "
        "over the denoiser calls really made, 2 per multiply-add: *linear* counts linear layers alone, as the paper "
        "does, *full* everything ([conventions](flops.md)). *Published* is the paper's total in TFLOPs, on its own "
        "models and sizes: compare the shares, not the totals. PSNR is a mean over prompts with its standard "
        "deviation. Alignment is the share of captioned attributes that are right; the Frechet distance is of "
        f"{record['num_prompts']} videos to real ones, so it is biased upwards by their small number: compare it "
        "within the table only.",
    ]


def _column(record: JsonObject, column: JsonObject, baseline: str) -> list[str]:
    cells = [cell for cell in record["cells"] if cell["column"] == column["name"]]
    control = next(cell for cell in cells if cell["schedule"] == CONTROL)
    lines = [f"`{' + '.join(column['stack'])}`"]
    if column["control"] is not None:
        lines[0] += f"; its {CONTROL} is `{' + '.join(column['control']) or 'the pipeline as it is'}`"
    if column["published_setting"]:
        lines[0] += f". Published: {column['published_setting']}."
    headings = [heading.format(baseline=baseline) for heading in _HEADINGS]
    return [*lines, "", *table(headings, (_row(cell, control, column) for cell in cells))]


def _row(cell: JsonObject, control: JsonObject, column: JsonObject) -> Sequence[str]:
    published: Mapping[str, int] = column["published"]
    total, small = published.get(cell["schedule"]), column["small_letter"]
    return (
        cell["schedule"].replace("S", small),
        cell["steps"].replace("S", small),
        _ratio(cell, "control") if cell["schedule"] != CONTROL else "1",
        _ratio(cell, "baseline"),
        f"{cell['linear_flops'] / 1e9:.1f} ({cell['linear_flops'] / control['linear_flops']:.0%})",
        f"{cell['full_flops'] / 1e9:.1f} ({cell['full_flops'] / control['full_flops']:.0%})",
        f"{total:,} ({total / published[CONTROL]:.0%})" if total else "-",
        _decibels(cell, "control"),
        _decibels(cell, "baseline"),
        f"{cell['alignment']:.1%}",
        f"{cell['frechet_distance']:.2f}",
    )


def _ratio(cell: JsonObject, to: str) -> str:
    least, greatest = cell[f"speedup_over_{to}_range"]
    return f"{cell[f'speedup_over_{to}']:.2f} ({least:.2f}-{greatest:.2f})"


def _decibels(cell: JsonObject, to: str) -> str:
    return shown(cell[f"psnr_to_{to}_db"], ".1f", cell[f"psnr_to_{to}_std_db"])


def _reading(record: JsonObject, baseline: str) -> list[str]:
    """Summary of the figures, in sentences that hold for whatever was measured."""
    lines = ["## In short", ""]
    for column in record["columns"]:
        cells = {cell["schedule"]: cell for cell in record["cells"] if cell["column"] == column["name"]}
        large, blended = cells[CONTROL], cells["LSL"]
        name = "LSL".replace("S", column["small_letter"])
        lines.append(
            f"- **{column['name']}**: {name} is {blended['speedup_over_control']:.2f} times as fast as its LLL, with "
            f"{blended['linear_flops'] / large['linear_flops']:.0%} of its linear FLOPs, and "
            f"{blended['speedup_over_baseline']:.2f} times as fast as LLL at {baseline}. Alignment "
            f"{blended['alignment']:.1%}, against {large['alignment']:.1%} of its LLL."
        )
    lines += [
        "",
        'The paper\'s headline of "57.35 % fewer FLOPs" is most likely 57.35 % *of* the FLOPs (linear layers, LTX with '
        "L on half of 40 steps): no split of the steps gives a saving of 57.35 %.",
    ]
    return lines
