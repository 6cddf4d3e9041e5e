"""The options of ``flowblend matrix run``, and those that its results are judged by."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from flowblend_plugins.contract.traits import Family

from ..report.gate import FailOn
from ..results.cells import PAPER_SCHEDULES

DEFAULT_PAIR = "reference"
MANY_CELLS = 200
DEFAULT_PROMPTS = (8, 3)
DEFAULT_REPEATS = (3, 2)
STACKS_TOGETHER = (1, 8)
"""Of a few cells, and of more than ``MANY_CELLS``."""


class ExecutorName(str, enum.Enum):
    """Who runs the cells."""

    LOCAL = "local"
    RAY = "ray"


class ReportFormat(str, enum.Enum):
    """What a finished run is shown as."""

    HTML = "html"
    MARKDOWN = "markdown"


# -- what is run -----------------------------------------------------------------------------------------------------

PairsOption = Annotated[
    list[str] | None,
    typer.Option("--pair", help=f"A registered pair by name; may be repeated.  [default: {DEFAULT_PAIR}]"),
]
SchedulesOption = Annotated[
    list[str] | None,
    typer.Option("--schedule", help=f"A schedule to try; may be repeated.  [default: {', '.join(PAPER_SCHEDULES)}]"),
]
StacksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help='An acceleration to cross with every schedule, as "name(option=value)"; join several with "+" to stack '
        "them. May be repeated: each is tried for itself.",
    ),
]
FamiliesOption = Annotated[
    list[Family] | None,
    typer.Option("--family", help="Cross every installed adapter of this family too, at its suggested settings."),
]
AllOption = Annotated[
    bool, typer.Option("--all-adapters", help="Cross every installed adapter, third-party ones included.")
]
DepthOption = Annotated[
    int,
    typer.Option(
        "--depth",
        min=1,
        max=4,
        help="Stack the adapters on each other too: 2 for all pairs, 3 for triples as well; each at the first of its "
        "settings.",
    ),
]
RefusedOption = Annotated[
    bool,
    typer.Option(
        "--run-refused", help="Run what is declared incompatible too: a refused cell that holds is unexpected."
    ),
]
PromptsOption = Annotated[
    int | None,
    typer.Option(
        "--prompts",
        min=1,
        help=f"How many of the pair's own prompts.  [default: {DEFAULT_PROMPTS[0]}, or all; {DEFAULT_PROMPTS[1]} for "
        f"more than {MANY_CELLS} cells]",
    ),
]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, help="Videos of each prompt, each from its own noise.")]
RepeatsOption = Annotated[
    int | None,
    typer.Option(
        "--repeats",
        min=1,
        help=f"Timed generations of each cell and each of its controls.  [default: {DEFAULT_REPEATS[0]}; "
        f"{DEFAULT_REPEATS[1]} for more than {MANY_CELLS} cells]",
    ),
]
FramesOption = Annotated[int | None, typer.Option(min=1, help="[default: the pair's]")]

# -- how it is run ---------------------------------------------------------------------------------------------------

ExecutorOption = Annotated[
    ExecutorName,
    typer.Option("--executor", help="Where cells run: on this machine, or on a Ray cluster (extra `ray`)."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="The Ray cluster to join.  [default: RAY_ADDRESS, or one that is started on this machine]",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Worker processes; on one machine they never time anything at the same moment.  [default: 1; with ray one "
        "for each GPU of the cluster, or each CPU where it has none]",
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--cell-timeout", min=0.1, help="Seconds after which a part of a cell that does not end is given up."),
]
MemoryOption = Annotated[
    int | None,
    typer.Option("--memory-limit", min=1, help="Megabytes that a worker may take beyond what its pair needs to load."),
]
SharingOption = Annotated[
    bool, typer.Option("--sharing/--no-sharing", help="Compute once what cells have in common; never for timing.")
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with what DIR holds of an interrupted run; what is stale there is measured again."
    ),
]

# -- what it is held to ----------------------------------------------------------------------------------------------

MinPsnrOption = Annotated[
    float, typer.Option("--min-psnr-db", help="Budget: below this PSNR to large-only a cell is degraded.")
]
MinSsimOption = Annotated[float, typer.Option("--min-ssim", help="Budget: the same of SSIM.")]
MinAlignmentOption = Annotated[
    float,
    typer.Option("--min-alignment-kept", help="Budget: the same of prompt alignment, as a fraction of large-only's."),
]
MinSpeedupOption = Annotated[
    float, typer.Option("--min-speedup", help="Budget: the same of the speed-up over large-only; 0 asks for none.")
]
ExpectationsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--expectations",
        metavar="FILE",
        help="Known outcomes with their reasons, beside those that are shipped; may be repeated, the last one counts.",
    ),
]
FailOnOption = Annotated[
    list[FailOn] | None,
    typer.Option(
        "--fail-on",
        help="What makes the exit code 3, where no expectation foresees it; may be repeated.  [default: unexpected]",
    ),
]
ReportFailOnOption = Annotated[
    list[FailOn] | None,
    typer.Option("--fail-on", help="What makes the exit code 3; may be repeated.  [default: nothing]"),
]
JunitOption = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write the cells as JUnit XML for a CI server.")
]
SummaryOption = Annotated[
    Path | None,
    typer.Option(
        "--summary",
        metavar="FILE",
        help="Write a summary in GitHub's Markdown; on GitHub Actions the job's page gets one in any case.",
    ),
]
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
    ReportFormat, typer.Option("--format", help="A page with the videos in it, or tables in GitHub's Markdown.")
]
