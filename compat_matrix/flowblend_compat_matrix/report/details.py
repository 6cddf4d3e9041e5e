"""Details of a cell for the page's script: reasons, timeline and numbers."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from flowblend_plugins.types import JsonObject

from ..results.cell_result import UNNAMED_BRANCH
from ..results.matrix_results import BaselineResult, CellResult, Matrix, PairRecord
from .figures import NOT_MEASURED, between, figure, flops, percent, times
from .media import on_front
from .view import VERDICT_MARKS, command_prefix, first_videos

_OUTCOMES = {"compute": "c", "reuse": "r", "predict": "p"}
_LETTERS = {True: "yes", False: "no", None: NOT_MEASURED}


class Number(NamedTuple):
    """A figure as text, and how far it spreads (may be empty)."""

    value: str
    spread: str = ""


class Once:
    """Things by their place in a list that holds each of them once: hundreds of cells are refused for one reason."""

    def __init__(self) -> None:
        self._places: dict[Hashable, int] = {}

    def place(self, thing: Hashable) -> int:
        """Place of a thing, which is added if it is new."""
        return self._places.setdefault(thing, len(self._places))

    @property
    def things(self) -> list[Hashable]:
        return list(self._places)


def json_for_script(value: object) -> str:
    """JSON that is safe inside ``<script>``: nothing in it can end the element, begin a comment or end a line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_data(matrix: Matrix) -> JsonObject:
    """Every pair and every cell; cells in the order of the matrix, which is how the page's cells name them.

    Reasons and timelines of cells are places in ``texts`` and ``timelines``.
    """
    metrics = sorted({name for cell in matrix.cells for name in cell.metrics})
    texts, timelines = Once(), Once()
    num_prompts = {pair.name: len(pair.prompts) for pair in matrix.run.pairs}
    cells = [_cell(cell, num_prompts.get(cell.pair, 0), metrics, texts, timelines) for cell in matrix.cells]
    return {
        "numbers": number_labels(metrics),
        "marks": VERDICT_MARKS,
        "command": matrix.run.command,
        "minPsnr": matrix.run.budget.get("min_psnr_db"),
        "pairs": {pair.name: _pair(matrix, pair, metrics) for pair in matrix.run.pairs},
        "texts": texts.things,
        "timelines": timelines.things,
        "cells": cells,
    }


def number_labels(metrics: Iterable[str]) -> list[str]:
    """Names of the numbers of :func:`cell_numbers` and of the baselines, in their order."""
    return [
        "speed-up over large-only",
        "over the schedule alone",
        "over the stack alone",
        "stacking efficiency",
        "latency, ms",
        "FLOPs, full",
        "FLOPs, linear layers",
        "PSNR to large-only, dB",
        "SSIM to large-only",
        "prompt alignment",
        "Frechet distance",
        *(name.replace("_", " ") for name in metrics),
        "forwards computed by L / S",
        "forwards reused / predicted",
        "peak memory, MB",
        "generation 2 equals generation 1",
        "large-only unchanged afterwards",
    ]


def cell_numbers(cell: CellResult, metrics: Sequence[str]) -> list[Number]:
    """Figures of a cell with their spread: lowest and highest over the rounds, deviation over the prompts."""
    return [
        Number(times(cell.speedup_over_large), _range(cell.speedup_over_large_range, 2)),
        Number(times(cell.speedup_over_blend)),
        Number(times(cell.speedup_over_stack)),
        Number(figure(cell.stacking_efficiency)),
        Number(figure(cell.latency_ms, 0), _range(cell.latency_ms_range, 0)),
        Number(percent(cell.flops_fraction_full)),
        Number(percent(cell.flops_fraction_linear)),
        Number("identical") if cell.is_identical_to_large else _spread(cell.psnr_db, cell.psnr_db_std, 1),
        _spread(cell.ssim, cell.ssim_std, 3),
        Number(figure(cell.prompt_alignment, 3)),
        Number(figure(cell.frechet_distance)),
        *_metrics(cell, metrics),
        Number(_slashed(cell.num_large_forwards, cell.num_small_forwards)),
        Number(_slashed(cell.num_reused_forwards, cell.num_predicted_forwards)),
        Number(figure(cell.peak_memory_mb, 0), f"of the {cell.peak_memory_of}" if cell.peak_memory_of else ""),
        Number(_LETTERS[cell.is_warm_equal]),
        Number(_LETTERS[cell.is_teardown_clean]),
    ]


def _baseline_numbers(
    baseline: BaselineResult, is_large: bool, large: BaselineResult, metrics: list[str]
) -> list[Number]:
    """Figures of either denoiser alone, in that order; FLOPs of large-only are the whole, as a count."""
    nothing, num = Number(NOT_MEASURED), baseline.num_forwards
    if is_large:
        full, linear = Number(flops(baseline.full_flops)), Number(flops(baseline.linear_flops))
    else:
        full = Number(percent(_fraction(baseline.full_flops, large.full_flops)))
        linear = Number(percent(_fraction(baseline.linear_flops, large.linear_flops)))
    return [
        Number(times(1.0)) if is_large else nothing,
        nothing,
        nothing,
        nothing,
        Number(figure(baseline.latency_ms, 0)),
        full,
        linear,
        Number("identical") if is_large else _spread(baseline.psnr_db, baseline.psnr_db_std, 1),
        _spread(baseline.ssim, baseline.ssim_std, 3),
        Number(figure(baseline.prompt_alignment, 3)),
        Number(figure(baseline.frechet_distance)),
        *_metrics(baseline, metrics),
        Number(NOT_MEASURED if num is None else f"{num} / 0" if is_large else f"0 / {num}"),
        *[nothing] * 4,
    ]


def _pair(matrix: Matrix, pair: PairRecord, metrics: list[str]) -> JsonObject:
    cells = [cell for cell in matrix.cells if cell.pair == pair.name]
    return {
        "command": command_prefix(matrix.run, pair),
        "first": first_videos(pair, cells),
        "front": [cell.id for cell in on_front(cells, pair.front)],
        "isConfirmed": bool(pair.front),
        "divergence": pair.divergence,
        "boundaries": pair.boundary_steps or [],
        "makes": pair.makes,
        "fps": pair.fps,
        "prompts": [f"{text} (seed {seed})" for text, seed in zip(pair.prompts, pair.seeds, strict=False)],
        "large": pair.large_only.videos,
        "small": pair.small_only.videos,
        "largeNumbers": _baseline_numbers(pair.large_only, True, pair.large_only, metrics),
        "smallNumbers": _baseline_numbers(pair.small_only, False, pair.large_only, metrics),
    }


def _cell(cell: CellResult, num_prompts: int, metrics: list[str], texts: Once, timelines: Once) -> JsonObject:
    return {
        "id": cell.id,
        "pair": cell.pair,
        "schedule": cell.schedule,
        "adapters": cell.adapters,
        "figures": _figures(cell, num_prompts),
        "stages": cell.stages or "",
        "declared": (cell.declared or "").replace("_", " "),
        "declaredReasons": [texts.place(reason) for reason in cell.declared_reasons],
        "observed": cell.observed or "",
        "reasons": [texts.place(reason) for reason in cell.reasons],
        "error": cell.error or "",
        "expectation": texts.place(cell.expectation or ""),
        "surprise": (cell.surprise or "").replace("_", " "),
        "numbers": cell_numbers(cell, metrics) if cell.num_large_forwards is not None else [],
        "timeline": timelines.place(timeline(cell)),
        "videos": cell.videos,
    }


def _figures(cell: CellResult, num_prompts: int) -> JsonObject:
    """Figures that the table sorts by, each with its interval; of the confirmation where there is one.

    ``num_prompts`` are those of the pair: of old results, which do not say how many a cell had.
    """
    of = cell.confirmation or cell
    return {
        "speed": [of.speedup_over_large, of.speedup_over_large_interval],
        "psnr": [of.psnr_db, of.psnr_db_interval],
        "ssim": [of.ssim, of.ssim_interval],
        "kept": [of.alignment_kept, of.alignment_kept_interval],
        "flops": [cell.flops_fraction_full, None],
        "prompts": [None if of.psnr_db is None else of.num_prompts or num_prompts, None],
        "isExact": bool(cell.is_identical_to_large),
        "isConfirmed": cell.confirmation is not None,
        "isScreened": cell.is_screened,
    }


class Timeline(NamedTuple):
    """Denoisers that answered, step by step.

    Attributes:
        stages: name and number of steps.
        lanes: of every denoiser and guidance branch (``""`` where a call is for all of them) a letter for every step:
            ``c`` computed, ``r`` reused, ``p`` predicted, ``x`` something else, ``-`` where the other one answered.
    """

    stages: tuple[tuple[str, int], ...]
    lanes: tuple[tuple[str, str, str], ...]


def timeline(cell: CellResult) -> Timeline:
    """Lanes that are drawn of ``cell.timeline``."""
    rows = cell.timeline
    stages: list[tuple[str, int]] = []
    for row in rows:
        stage = str(row["stage"])
        if stages and stages[-1][0] == stage:
            stages[-1] = (stage, stages[-1][1] + 1)
        else:
            stages.append((stage, 1))
    keys = sorted({(str(row["denoiser"]), str(branch)) for row in rows for branch in row["outcomes"]})
    lanes = [
        (
            denoiser,
            "" if branch == UNNAMED_BRANCH else branch,
            "".join(
                _OUTCOMES.get(row["outcomes"][branch], "x")
                if row["denoiser"] == denoiser and branch in row["outcomes"]
                else "-"
                for row in rows
            ),
        )
        for denoiser, branch in keys
    ]
    return Timeline(tuple(stages), tuple(lanes))


def _metrics(of: CellResult | BaselineResult, names: Sequence[str]) -> list[Number]:
    found = (of.metrics.get(name, {}) for name in names)
    return [_spread(metric.get("mean"), metric.get("std"), 4) for metric in found]


def _range(values: list[float] | None, digits: int) -> str:
    found = between(values, digits)
    return "" if found == NOT_MEASURED else found


def _spread(mean: float | None, std: float | None, digits: int) -> Number:
    return Number(figure(mean, digits), "" if mean is None or std is None else f"± {std:.{digits}f}")


def _slashed(one: int | None, other: int | None) -> str:
    return NOT_MEASURED if one is None else f"{one} / {other}"


def _fraction(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None
