"""Options of ``flowblend matrix run`` and ``report``, in groups of what belongs together."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flowblend_plugins.cli.options import (
    EarlyOption,
    GuidanceScaleOption,
    ImageOption,
    LargeOption,
    LateOption,
    PixelsOption,
    PromptOption,
    SeedOption,
    SmallOption,
    StepsOption,
)
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.errors import UsageError
from flowblend_plugins.types import JsonObject

from ..report.gate import FailOn
from ..results.cells import PAPER_SCHEDULES
from ..results.intervals import LOOKS, MIN_ROUNDS
from ..results.verdicts import QualityBudget

DEFAULT_PAIR = "reference"


class ExecutorName(str, enum.Enum):
    """Names of the executors, which run the cells."""

    LOCAL = "local"
    RAY = "ray"


class ReportFormat(str, enum.Enum):
    """Formats of the report on a finished run."""

    HTML = "html"
    MARKDOWN = "markdown"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class CellOptions:
    """Pairs, schedules and stacks of adapters that a run crosses with each other.

    Raises:
        UsageError: a large denoiser without a small one, or one of their own beside several registered pairs.
    """

    pair: Annotated[
        list[str] | None, typer.Option(help=f"A registered pair by name; may be repeated.  [default: {DEFAULT_PAIR}]")
    ] = None
    large: LargeOption = None
    small: SmallOption = None
    schedule: Annotated[
        list[str] | None,
        typer.Option(help=f"A schedule to try; may be repeated.  [default: {', '.join(PAPER_SCHEDULES)}]"),
    ] = None
    early: EarlyOption = None
    late: LateOption = None
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help='An acceleration to cross with every schedule, as "name(option=value)"; join several with "+" to '
            "stack them. May be repeated: each is tried for itself."
        ),
    ] = None
    family: Annotated[
        list[Family] | None,
        typer.Option(help="Cross every installed adapter of this family too, at its suggested settings."),
    ] = None
    all_adapters: Annotated[
        bool, typer.Option("--all-adapters", help="Cross every installed adapter, third-party ones included.")
    ] = False
    depth: Annotated[
        int,
        typer.Option(
            min=1,
            max=4,
            help="Stack the adapters on each other too: 2 for all pairs, 3 for triples as well; each at the first of "
            "its settings.",
        ),
    ] = 1
    run_refused: Annotated[
        bool,
        typer.Option(
            "--run-refused", help="Run what is declared incompatible too: a refused cell that holds is unexpected."
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.large is not None and self.small is None:
            raise UsageError("--large needs --small: the matrix compares two denoisers.")
        if (self.large is not None or self.small is not None) and len(self.pairs) > 1:
            raise UsageError("--large and --small make one pair of their own, so they go with one --pair at most.")

    @property
    def pairs(self) -> list[str]:
        """Names of the pairs, each once."""
        return list(dict.fromkeys(self.pair or [DEFAULT_PAIR]))

    @property
    def schedules(self) -> list[str]:
        """Schedules as texts, each once."""
        return list(dict.fromkeys(self.schedule or PAPER_SCHEDULES))


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """Calls of the pipeline that are made for every cell."""

    steps: StepsOption = None
    guidance_scale: GuidanceScaleOption = None
    seed: SeedOption = 0
    prompt: PromptOption = None
    prompts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many of the pair's own prompts at most: each cell is shown more until it is certain.  "
            f"[default: {LOOKS[-1]}, or all]",
        ),
    ] = None
    screen: Annotated[
        bool,
        typer.Option(
            "--screen", help=f"A first look: {LOOKS[0]} prompts and one timed round, of which nothing is certain."
        ),
    ] = False
    seeds: Annotated[int, typer.Option(min=1, help="Videos of each prompt, each from its own noise.")] = 1
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            min=1,
            help="Timed generations of each cell and each of its baselines; fewer than "
            f"{MIN_ROUNDS} say nothing certain of speed.  [default: {MIN_ROUNDS}]",
        ),
    ] = None
    height: PixelsOption = None
    width: PixelsOption = None
    num_frames: Annotated[int | None, typer.Option(min=1, help="[default: the pair's]")] = None
    image: ImageOption = None

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompts is not None:
            raise UsageError(
                "--prompt gives one prompt and --prompts a number of the pair's own. Leave one of them out."
            )
        if self.screen and (self.prompts is not None or self.repeats is not None):
            raise UsageError("--screen sets the number of prompts and of rounds. Leave out --prompts and --repeats.")

    @property
    def most_prompts(self) -> int:
        """Prompts that a cell is shown at most, where ``prompts`` does not say."""
        return LOOKS[0] if self.screen else LOOKS[-1]

    @property
    def num_repeats(self) -> int:
        """Timed generations of each cell and baseline."""
        return self.repeats or (1 if self.screen else MIN_ROUNDS)

    @property
    def asked(self) -> JsonObject:
        """Keyword arguments of the pipeline call that were given."""
        arguments = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
            "num_frames": self.num_frames,
            "image": self.image and str(self.image),
        }
        return {name: value for name, value in arguments.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """Bounds below which a cell is degraded."""

    min_psnr_db: Annotated[
        float, typer.Option("--min-psnr-db", help="Budget: below this PSNR to large-only a cell is degraded.")
    ] = QualityBudget.min_psnr_db
    min_ssim: Annotated[float, typer.Option(help="Budget: the same of SSIM.")] = QualityBudget.min_ssim
    min_alignment_kept: Annotated[
        float,
        typer.Option(
            "--min-alignment-kept", help="Budget: the same of prompt alignment, as a fraction of large-only's."
        ),
    ] = QualityBudget.min_alignment_kept
    min_speedup: Annotated[
        float, typer.Option(help="Budget: the same of the speed-up over large-only; 0 asks for none.")
    ] = QualityBudget.min_speedup


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """Outcomes that make the command fail, and files that a CI server reads."""

    expectations: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Known outcomes with their reasons, beside those that are shipped; may be repeated, the last one "
            "counts.",
        ),
    ] = None
    fail_on: Annotated[
        list[FailOn] | None,
        typer.Option(
            help="Verdict that makes the exit code 3 unless an expectation covers it; may be repeated.  [default: "
            "unexpected after a run, nothing for a report]"
        ),
    ] = None
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the cells as JUnit XML for a CI server.")
    ] = None
    summary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a summary in GitHub's Markdown; on GitHub Actions the job's page gets one in any case.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Workers that run the cells, and limits on them."""

    executor: Annotated[
        ExecutorName, typer.Option(help="Where cells run: on this machine, or on a Ray cluster (extra `ray`).")
    ] = ExecutorName.LOCAL
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The Ray cluster to join.  [default: RAY_ADDRESS, or one that is started on this machine]",
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Worker processes; on one machine they never time anything at the same moment.  [default: 1; with ray "
            "one for each GPU of the cluster, or each CPU where it has none]",
        ),
    ] = None
    cell_timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds after which a part of a cell that does not end is given up.")
    ] = None
    memory_limit: Annotated[
        int | None, typer.Option(min=1, help="Megabytes that a worker may take beyond what its pair needs to load.")
    ] = None
    sharing: Annotated[
        bool, typer.Option("--sharing/--no-sharing", help="Compute once what cells have in common; never for timing.")
    ] = True
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with what DIR holds of an interrupted run; what is stale there is measured again."
        ),
    ] = False


MaxMbOption = Annotated[
    float | None,
    typer.Option(
        "--max-mb",
        min=0.1,
        help="Size of report.html in MB (10^6 bytes). The videos that a reader asks for last stay outside.",
        show_default="15",
    ),
]
FormatOption = Annotated[
    ReportFormat,
    typer.Option(
        "--format", help="A page with the videos in it, tables in GitHub's Markdown, or figures without videos."
    ),
]
