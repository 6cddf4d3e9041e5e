"""Caveats that a reader must know before quoting a figure of the report."""

from __future__ import annotations

from ..results.matrix_results import Matrix, PairRecord

_REFERENCE = (
    "This pair is small and was trained for this package. It can tell whether code is right, and which stages need the "
    "large denoiser; at its operating point fewer steps, plain reuse and blending cost about what they cost WAN 2.1, "
    "so an order among them is worth trying there, and a figure is not. It is too kind to adaptive caches (TeaCache at "
    "1.5x leaves 39 dB here, 18.6 dB on WAN 14B): do not conclude that caching beats blending. It cannot tell how fast "
    "a real model becomes: its forward takes milliseconds and its attention spans 48 tokens, so overheads that vanish "
    "beside a model of 14 billion parameters show here."
)


def caveats(matrix: Matrix, pair: PairRecord) -> list[str]:
    """Counting conventions, and the limits of this machine, these prompts and this pair."""
    run, where = matrix.run, matrix.environment
    threads = "1 thread" if where.get("num_threads") == 1 else f"{where.get('num_threads')} threads"
    rounds = (
        "one warm round, so how far it spreads is not known"
        if run.num_repeats == 1
        else f"the median of {run.num_repeats} warm rounds, with the lowest and the highest"
    )
    said = [
        f"Speed is a ratio to the baseline that ran beside the cell in the same process: {rounds}. "
        "It covers prompt encoding and denoising, not decoding. Milliseconds are those of "
        f"{where.get('device')} with {threads} (load {where.get('load_average')} at the "
        "start) and mean nothing elsewhere; other work on the machine shows in the spread.",
        "FLOPs count 2 per multiply-add, every guidance branch, and the denoisers alone. “Linear” counts linear layers "
        "only, which reproduces the totals published for FlowBlending; “full” adds attention products and "
        "convolutions. A reused forward counts as 0. Published savings differ by convention: compare like with like.",
        "Fidelity (PSNR, SSIM) is nearness to what large-only makes of the same seed, not quality: a good video that "
        "differs scores low. High-frequency error compares the strength of fine detail, place by place; flicker is of "
        "the video alone.",
    ]
    if matrix.is_screening:
        said.append(f"A screening of {run.looks[0]} prompts: verdicts go by the means, and none of them is certain.")
    elif run.looks:
        said.append(
            f"Prompts were added to each cell, {', '.join(map(str, run.looks))} in all, until its verdict was certain: "
            "cells differ in how many they had, and “undecided” is one that the last of them left open. Brackets hold "
            f"the mean over prompts like these with {run.confidence:.0%}, over all looks together (of speed: over the "
            "timed rounds); ± is the standard deviation. “Confirmed” figures are of prompts that chose nothing."
        )
    elif len(pair.prompts) > 1:
        said.append(f"Figures are means over {len(pair.prompts)} prompts, ± is the standard deviation over them.")
    else:
        said.append("Figures are of a single prompt and seed.")
    if pair.judge:
        said.append(
            f"Prompt alignment and Frechet distance come from the {pair.judge}. With few videos the Frechet "
            "distance is biased upwards, so compare it within this report only; one wrong attribute moves alignment "
            "visibly."
        )
    said.append(_budget(matrix, pair))
    if pair.name == "reference":
        said.append(_REFERENCE)
    return said


def _budget(matrix: Matrix, pair: PairRecord) -> str:
    budget = matrix.run.budget
    bounds = f"PSNR {budget['min_psnr_db']:g} dB, SSIM {budget['min_ssim']:g}"
    if pair.judge:
        bounds += f", {budget['min_alignment_kept']:.0%} of large-only’s prompt alignment"
    return (
        f"“Degraded” means below the budget: {bounds}. The budget lies between the published WAN clips of FlowBlending "
        "and those of the small model alone; it is a choice."
    )
