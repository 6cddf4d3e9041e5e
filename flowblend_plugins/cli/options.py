"""Options that several commands share, and the pair and schedule they name."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..manager import FlowblendPluginManager, pairs_by_name
from ..pairs.placement import Placement
from ..pairs.preset import PairPreset
from ..schedule import NAMED_SCHEDULES, StageSchedule

_SCHEDULE_HELP = (
    f"Which denoiser answers when: a name ({', '.join(NAMED_SCHEDULES)}), runs of steps (L:20,S:20,L:10), or sigma "
    "bounds (L>=0.9,S>=0.4,L)."
)
PairOption = Annotated[str, typer.Option("--pair", help="A registered pair by name; `flowblend plugins` lists them.")]
LargeOption = Annotated[
    str | None,
    typer.Option("--large", help="Pipeline with the large denoiser: hub id, folder or file. Overrides --pair's."),
]
TextEncoderOption = Annotated[
    str | None,
    typer.Option(
        "--text-encoder",
        metavar="FOLDER",
        help="Where --large is a single file: the pipeline that lends text encoder, tokenizer, VAE and scheduler.",
    ),
]
SmallOption = Annotated[
    str | None,
    typer.Option("--small", help="Small denoiser: hub id, folder or file, of a pipeline or alone. Overrides --pair's."),
]
ScheduleOption = Annotated[str, typer.Option("--schedule", help=_SCHEDULE_HELP)]
PairScheduleOption = Annotated[
    str | None, typer.Option("--schedule", help=f"{_SCHEDULE_HELP} [default: the pair's, LSL for most]")
]
EarlyOption = Annotated[
    float | None, typer.Option("--early", help="Early stage, as a fraction of the steps. [default: the pair's]")
]
LateOption = Annotated[
    float | None, typer.Option("--late", help="Late stage, as a fraction of the steps. [default: the pair's]")
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", help='An acceleration to stack, as "name(option=value)"; may be repeated.'),
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, help="Number of inference steps. [default: the pair's]")
]
GuidanceScaleOption = Annotated[
    float | None, typer.Option("--guidance-scale", min=0.0, help="Classifier-free guidance. [default: the pair's]")
]
PixelsOption = Annotated[int | None, typer.Option(min=1, help="Pixels.  [default: the pair's]")]
FramesOption = Annotated[int | None, typer.Option(min=1, help="Length of the video.  [default: the pair's]")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the initial noise.")]
PromptOption = Annotated[str | None, typer.Option("--prompt", help="What to show. [default: an example of the pair]")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for everything that is written.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
ImageOption = Annotated[
    Path | None,
    typer.Option(
        "--image",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Image to start from, where the pipeline takes one.",
    ),
]


class DtypeName(str, enum.Enum):
    """Dtypes that a pipeline can be loaded in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class OffloadName(str, enum.Enum):
    """Ways in which parts of a pipeline wait in the CPU's memory; the names are diffusers'."""

    MODEL = "model"
    SEQUENTIAL = "sequential"


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """Device, dtype and offloading of the pair."""

    device: Annotated[
        str | None, typer.Option(help="Where it computes, such as cuda:1.  [default: cuda where there is one, or cpu]")
    ] = None
    dtype: Annotated[
        DtypeName | None, typer.Option(help="Of weights and latents.  [default: bfloat16; float32 on the CPU]")
    ] = None
    offload: Annotated[
        OffloadName | None, typer.Option(help="Keep in the CPU's memory what is not at work: whole models, or layers.")
    ] = None

    @property
    def placement(self) -> Placement:
        return Placement(self.device, self.dtype and self.dtype.value, self.offload and self.offload.value)


def read_schedule(
    text: str | None, early: float | None, late: float | None, preset: PairPreset | None = None
) -> StageSchedule:
    """The stage schedule that the options name; what is not given is the pair's.

    Raises:
        ScheduleError: the text cannot be read, or the fractions are wrong.
        UsageError: it calls a denoiser that no option can give.
    """
    text = text or (preset.schedule if preset is not None else "LSL")
    if preset is not None and not any(mark in text for mark in ":,>"):  # runs and sigma bounds have their own
        early = preset.early if early is None else early
        late = preset.late if late is None else late
    schedule = StageSchedule.parse(text, early, late)
    experts = dict(preset.experts) if preset is not None else {}
    unknown = sorted(schedule.letters - {"L", "S", *experts})
    if unknown:
        has = ", ".join(["L (large)", "S (small)", *(f"{letter} ({name})" for letter, name in experts.items())])
        raise UsageError(
            f"--schedule {text!r} calls denoiser {', '.join(unknown)}, but this pair has {has}. Write the schedule "
            "with these letters; other denoisers can be blended from Python, with "
            "flowblend_plugins.enable(denoisers=...)."
        )
    return schedule


def find_preset(manager: FlowblendPluginManager, pair: str, large: str | None) -> PairPreset | None:
    """The registered pair of that name; ``None`` where ``--large`` takes its place.

    Raises:
        UsageError: there is none of that name.
    """
    if large is not None:
        return None
    known = pairs_by_name(manager)
    if pair not in known:
        raise UsageError(
            f"--pair {pair!r}: there is no such pair. Known: {', '.join(sorted(known)) or 'none'}. For your own, give "
            "--large and --small."
        )
    return known[pair]
