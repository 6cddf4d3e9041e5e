"""The command ``flowblend plan``, which computes a stack."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowblend_plugins import UsageError
from flowblend_plugins.cli.options import GuidanceScaleOption, JsonOption
from flowblend_plugins.extras import how_to_install, is_installed
from flowblend_plugins.files.writing import prepare_output_folder, write_json_atomically
from flowblend_plugins.types import Keywords

from ..moments import VelocityMoments
from .plan import Budget, Plan, PlannedStack
from .plan import plan as compute

if TYPE_CHECKING:
    from rich.table import Table

FILE_NAME = "plan.json"
PLOT_NAME = "plan.png"


def plan(
    moments: Annotated[
        str, typer.Option("--moments", metavar="FILE", help="Of `flowblend calibrate forecast`, or `reference`.")
    ] = "reference",
    large_steps: Annotated[int | None, typer.Option(min=1, help="Budget: steps of the large denoiser.")] = None,
    flops: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Budget: share of large-only's FLOPs, such as 0.4.")
    ] = None,
    time: Annotated[
        float | None,
        typer.Option("--time", min=0.0, max=1.0, help="Budget: share of large-only's time, by the times in FILE."),
    ] = None,
    min_psnr: Annotated[
        float | None, typer.Option("--min-psnr", metavar="DB", help="Budget: predicted PSNR to large-only.")
    ] = None,
    guidance_scale: GuidanceScaleOption = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Number of steps you will sample with. [default: FILE's]")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for plan.json and plan.png.")] = Path("out/plan"),
    plot: Annotated[bool, typer.Option(help="Draw the predicted front to plan.png.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Compute which steps the large denoiser must answer, for a budget, without generating anything.

    In all other steps its velocity is forecast by least squares, so the small denoiser is not called at all. DIR
    receives plan.json, which `flowblend run --configuration` and `flowblend_plugins.read_configuration` take.

    Examples:

        flowblend plan --min-psnr 30

        flowblend plan --moments forecast.json --flops 0.35 --out out/plan
    """
    measured = VelocityMoments.read(moments)
    _refuse_other_calls(measured, moments, guidance_scale, steps)
    budget = Budget(large_steps=large_steps, flops_fraction=flops, time_fraction=time, min_psnr_db=min_psnr)
    found = compute(moments, budget)
    prepare_output_folder(out)
    record = to_record(found, budget, measured, moments)
    write_json_atomically(out / FILE_NAME, record)
    if plot and is_installed("matplotlib"):
        draw(found, out / PLOT_NAME)
    elif plot:
        typer.echo(f"{PLOT_NAME} is not drawn without matplotlib. {how_to_install('matplotlib')}", err=True)
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        _print(found, measured, out)


def to_record(found: Plan, budget: Budget, measured: VelocityMoments, moments: str) -> Keywords:
    """The configuration file and the whole front; figures are predictions."""
    from importlib.metadata import version

    own = measured.own_sampling
    return {
        "api_version": 1,
        "pair": moments if moments == "reference" else None,
        "schedule": found.chosen.schedule,
        "adapters": list(found.chosen.adapters),
        "budget": {name: value for name, value in vars(budget).items() if value is not None},
        "predicted": _figures(found.chosen),
        "front": [_figures(stack) for stack in found.front],
        "num_inference_steps": found.chosen.num_steps,
        "guidance_scale": measured.guidance_scale,
        "sampler": None if own is None else own.sampler.class_name,
        "moments": moments,
        "flowblend_plugins": version("flowblend-plugins"),
    }


def draw(found: Plan, path: Path) -> None:
    """The predicted front, the choice ringed."""
    from matplotlib.figure import Figure

    shown = {
        len(one.large_steps): (1.0 / one.flops_fraction, one.psnr_db)
        for one in found.front
        if one.psnr_db is not None and math.isfinite(one.psnr_db)
    }
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([gain for gain, _ in shown.values()], [psnr for _, psnr in shown.values()], "ks-", ms=4)
    for number, place in shown.items():
        axes.annotate(str(number), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    if (number := len(found.chosen.large_steps)) in shown:
        axes.plot(*shown[number], "o", ms=14, mfc="none", mec="tab:red", mew=2)
    axes.set_xscale("log")
    axes.set_xlabel("times as cheap as the large denoiser alone, in FLOPs (at each point: large steps)")
    axes.set_ylabel("predicted PSNR to it, dB")
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.xaxis.set_minor_formatter("{x:g}×")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)


def _refuse_other_calls(
    measured: VelocityMoments, moments: str, guidance_scale: float | None, steps: int | None
) -> None:
    if guidance_scale is not None and guidance_scale != measured.guidance_scale:
        raise UsageError(
            f"--guidance-scale {guidance_scale:g}: {moments} was measured at {measured.guidance_scale}. Run "
            f"`flowblend calibrate forecast --guidance-scale {guidance_scale:g}` first."
        )
    own = measured.own_sampling
    if steps is not None and own is not None and steps != own.sampler.num_steps:
        raise UsageError(
            f"--steps {steps}: {moments} was checked with {own.sampler.num_steps} steps of {own.sampler.class_name}. "
            f"Run `flowblend calibrate forecast --own-steps {steps}` first."
        )


def _figures(stack: PlannedStack) -> Keywords:
    psnr = stack.psnr_db
    return {
        "schedule": stack.schedule,
        "adapters": list(stack.adapters),
        "flops_fraction": round(stack.flops_fraction, 4),
        "time_fraction": None if stack.time_fraction is None else round(stack.time_fraction, 4),
        "psnr_db": None if psnr is None or math.isinf(psnr) else round(psnr, 2),
        "forecast_errors": [round(one, 4) for one in stack.relative_errors],
        "error_shares": [round(one, 4) for one in stack.error_shares],
    }


def _print(found: Plan, measured: VelocityMoments, out: Path) -> None:
    from rich.console import Console

    console = Console()
    chosen, own = found.chosen, measured.own_sampling
    console.print(_table("Predicted front", ("large steps", "FLOPs", "time", "PSNR", "schedule"), _rows(found)))
    told = ("step", "answer", "forecast errs by", "of the final error")
    console.print(_table(f"Predicted errors of {chosen.schedule}", told, _steps(chosen)))
    if own is not None and own.checked:
        differences = [abs(one["predicted_psnr_db"] - one["observed_psnr_db"]) for one in own.checked]
        said = (
            f"The calibration ran {len(differences)} stacks: predictions were off by {max(differences):.1f} dB at most."
        )
        console.print(said, highlight=False)
    adapters = " ".join(f'--adapter "{one}"' for one in chosen.adapters)
    psnr = "" if chosen.psnr_db is None else f", {chosen.psnr_db:.1f} dB"
    lines = (
        f"Chosen: {' + '.join((chosen.schedule, *chosen.adapters))}",
        f"Predicted: {chosen.flops_fraction:.1%} of large-only's FLOPs{psnr}. It is in {out / FILE_NAME}.",
        "Next, run it beside large-only:",
        f"  flowblend run --configuration {out / FILE_NAME} --compare",
        f"or  flowblend run --schedule {chosen.schedule} {adapters}".rstrip(),
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _rows(found: Plan) -> list[tuple[Sequence[str], bool]]:
    return [
        (
            (
                str(len(one.large_steps)),
                f"{1.0 / one.flops_fraction:.2f}×",
                "–" if one.time_fraction is None else f"{1.0 / one.time_fraction:.2f}×",
                "–" if one.psnr_db is None else "the same" if math.isinf(one.psnr_db) else f"{one.psnr_db:.1f} dB",
                one.schedule,
            ),
            one is found.chosen,
        )
        for one in found.front
    ]


def _steps(stack: PlannedStack) -> list[tuple[Sequence[str], bool]]:
    return [
        ((str(step + 1), "large", "", ""), False)
        if letter == "L"
        else ((str(step + 1), "forecast", f"{error:.1%}", f"{share:.1%}"), False)
        for step, (letter, error, share) in enumerate(
            zip(stack.letters, stack.relative_errors, stack.error_shares, strict=True)
        )
    ]


def _table(title: str, heads: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if head in ("schedule", "answer") else "right", overflow="fold")
    for cells, is_chosen in rows:
        table.add_row(*cells, style="bold" if is_chosen else None)
    return table
