"""The options that all commands share, and opening the pair they name."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PairError, UsageError
from ..manager import FlowblendPluginManager, pairs_by_name
from ..pairs.preset import PairPreset
from ..schedule import NAMED_SCHEDULES, StageSchedule

_SCHEDULE_HELP = (
    f"Which denoiser answers when: a name ({', '.join(NAMED_SCHEDULES)}), runs of steps (L:20,S:20,L:10), or sigma "
    "bounds (L>=0.9,S>=0.4,L)."
)
PairOption = Annotated[str, typer.Option("--pair", help="A registered pair by name; `flowblend plugins` lists them.")]
LargeOption = Annotated[
    str | None, typer.Option("--large", help="Pipeline with the large denoiser: hub id or folder. Overrides --pair's.")
]
SmallOption = Annotated[
    str | None,
    typer.Option("--small", help="Small denoiser: hub id or folder, of a pipeline or alone. Overrides --pair's."),
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


@dataclass(frozen=True)
class OpenedPair:
    """A pair that a command works on.

    Attributes:
        name: the pair's name, or the folders or hub ids it was opened from.
        preset: its registered data; ``None`` where ``--large`` replaced it.
        pipeline: the loaded diffusers pipeline with the large denoiser.
        small: where the small denoiser is kept.
        further: the pipeline's own further experts by letter, as ``enable(denoisers=...)`` takes them.
        call_defaults: keyword arguments for the pipeline call.
        example_prompts: prompts the pair is known to understand.
    """

    name: str
    preset: PairPreset | None
    pipeline: Any
    small: str | Path | None
    call_defaults: Mapping[str, Any]
    example_prompts: tuple[str, ...]
    further: Mapping[str, Any] = field(default_factory=dict)


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


def open_pair(manager: FlowblendPluginManager, pair: str, large: str | None, small: str | None) -> OpenedPair:
    """Load the pipeline of a registered pair, or of ``--large``; the small denoiser is loaded by ``enable()``.

    Raises:
        UsageError: no such pair.
        PairError: what the pair names is no diffusers pipeline with safetensors weights.
    """
    preset = find_preset(manager, pair, large)
    source = preset.large if preset else str(large)
    small_source = small if small is not None else preset.small if preset else None
    pipeline = load_pipeline(source)
    return OpenedPair(
        name=preset.name if preset and small is None else f"{source} + {small_source}",
        preset=preset,
        pipeline=pipeline,
        small=small_source,
        call_defaults=dict(preset.call_defaults) if preset else {},
        example_prompts=preset.example_prompts if preset else (),
        further=preset.further_denoisers(pipeline) if preset else {},
    )


def load_pipeline(source: str | Path) -> Any:
    """A diffusers pipeline from a folder or a hub id, on CUDA in bfloat16 if there is one, else on the CPU in float32.

    Raises:
        PairError: it is not there, is no pipeline, or its weights are not safetensors.
    """
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from ..pairs.stored import is_hub_id

    folder = Path(source).expanduser()
    is_local = not is_hub_id(source)
    if is_local and not (folder / "model_index.json").is_file():
        found = "it does not exist" if not folder.exists() else "it has no model_index.json"
        raise PairError(
            f"{source} is no diffusers pipeline: {found}. Give the folder that save_pretrained() wrote, or a hub id "
            'such as "Wan-AI/Wan2.1-T2V-14B-Diffusers".'
        )
    if is_local:
        _refuse_pickle(folder)
    if not sys.stderr.isatty():
        hide_progress_bars()
    on_cuda = torch.cuda.is_available()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder if is_local else str(source),
            dtype=torch.bfloat16 if on_cuda else torch.float32,
            use_safetensors=True,
            local_files_only=is_local,
        )
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        cause = textwrap.shorten(str(error), 300, placeholder="").rstrip(" .")
        remedy = "" if is_local else " Is the id right, and is there a network?"
        raise PairError(f"{source} cannot be loaded as a diffusers pipeline: {cause}.{remedy}") from error
    for name, component in pipeline.components.items():
        # Weights that a file lacks stay on the meta device, where the first step would stumble over them.
        if isinstance(component, torch.nn.Module) and any(weight.is_meta for weight in component.parameters()):
            raise PairError(
                f"{source}: the weights of its {name} are incomplete. Check that its safetensors files belong to its "
                "config.json, or download it again."
            )
    return pipeline.to("cuda") if on_cuda else pipeline


def hide_progress_bars() -> None:
    """Keep the libraries' loading bars out of logs and pipes."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _refuse_pickle(folder: Path) -> None:
    """Pickle executes what it holds, so a component that has nothing else is refused before anything is read."""
    from ..pairs.stored import PICKLE_SUFFIXES

    for component in sorted(p for p in folder.iterdir() if p.is_dir()):
        pickled = [p.name for p in component.iterdir() if p.suffix in PICKLE_SUFFIXES]
        if pickled and not any(component.glob("*.safetensors")):
            raise PairError(
                f"{component} has its weights in pickle files only ({', '.join(pickled[:3])}), which can run any code "
                "when loaded. Convert them where you trust them: save_pretrained(folder) writes safetensors."
            )
