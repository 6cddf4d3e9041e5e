"""``flowblend doctor``: what is installed, and what would and would not work."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import PluginError, notes_of
from ..extras import DISTRIBUTION, extra_by_package, how_to_install, is_installed
from ..manager import FlowblendPluginManager, make_plugin_manager, pairs_by_name
from ..pairs.preset import PairPreset
from ..pairs.sources import HUB_FILE
from .app import make_app
from .options import (
    EarlyOption,
    FramesOption,
    GuidanceScaleOption,
    JsonOption,
    LateOption,
    PairScheduleOption,
    PixelsOption,
    StepsOption,
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``state`` is ``ok``, ``missing`` (something optional) or ``broken``."""

    what: str
    state: str
    detail: str


def doctor(
    pair: Annotated[
        str | None, typer.Option(help="Say instead what a published pair needs, computed without weights.")
    ] = None,
    height: PixelsOption = None,
    width: PixelsOption = None,
    num_frames: FramesOption = None,
    schedule: PairScheduleOption = None,
    early: EarlyOption = None,
    late: LateOption = None,
    num_steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Memory of the GPU, such as 24GiB. [default: that of the GPU here]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, and what would and would not work, and why.

    It ends with a blended generation of a tiny random pair. Exit code 1 if FlowBlending itself does not work here;
    what is optional may be missing.

    With --pair it says what a published pair needs at a size: memory, FLOPs, and which placement fits a GPU. Exit code
    1 if none does.

    Examples:

        flowblend doctor

        flowblend doctor --json

        flowblend doctor --pair wan2.1-t2v --height 480 --width 832 --num-frames 81 --gpu-memory 24GiB
    """
    if pair is not None:
        from .doctor_pair import PairQuestion, answer

        given = {"height": height, "width": width, "num_frames": num_frames}
        given |= {"num_inference_steps": num_steps, "guidance_scale": guidance_scale}
        call = {name: value for name, value in given.items() if value is not None}
        answer(PairQuestion(pair, call, schedule, early, late, gpu_memory), as_json)
        return
    findings = list(examine())
    broken = any(finding.state == "broken" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"works": not broken, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        colours = {"ok": "green", "missing": "yellow", "broken": "red"}
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for _ in ("state", "what", "detail"):
            table.add_column(overflow="fold")
        for finding in findings:
            table.add_row(Text(finding.state, colours[finding.state]), Text(finding.what), Text(finding.detail))
        console = Console()
        console.print(table)
        console.print("FlowBlending does not work here." if broken else "FlowBlending works here.")
    if broken:
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Look at everything a run depends on."""
    yield Finding("Python", "ok", platform.python_version())
    yield from _requirements()
    yield from _extras()
    yield _looked_at("diffusers' cache hooks", _cache_hooks)
    yield _looked_at("device", _device)
    yield _looked_at("video encoder", _encoder)
    try:
        make_app(manager := make_plugin_manager())
    except (PluginError, KeyboardInterrupt) as error:
        if not (told := notes_of(error) or str(error)):  # Ctrl-C, outside of any plugin
            raise
        yield Finding("plugins", "broken", told)
    else:
        yield Finding("plugins", "ok", _plugin_names(manager))
        yield from map(_pair, pairs_by_name(manager).values())
        yield _looked_at("a blended generation", _blended_generation)


def _looked_at(what: str, look: Callable[[], tuple[str, str]]) -> Finding:
    """A finding even where looking fails: a doctor that dies of the disease names none."""
    try:
        return Finding(what, *look())
    except (Exception, KeyboardInterrupt) as error:
        told = notes_of(error)
        if isinstance(error, KeyboardInterrupt) and not told:  # Ctrl-C, outside of any plugin
            raise
        return Finding(what, "broken", f"{type(error).__name__}: {' '.join(f'{error} {told}'.split())}")


def _requirements() -> Iterator[Finding]:
    """Requirements that the installed package declares for this machine."""
    from packaging.requirements import Requirement

    for wanted in map(Requirement, importlib.metadata.requires(DISTRIBUTION) or ()):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        remedy = f"Run: pip install '{wanted.name}{wanted.specifier}'"
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(wanted.name, "broken", f"not installed. {remedy}")
            continue
        if wanted.specifier.contains(version, prereleases=True):
            yield Finding(wanted.name, "ok", version)
        else:
            yield Finding(wanted.name, "broken", f"{version}, but {wanted.specifier} is needed. {remedy}")


def _extras() -> Iterator[Finding]:
    """Optional packages, by the extra that brings them."""
    for package, extra in sorted(extra_by_package().items()):
        if is_installed(package):
            yield Finding(package, "ok", f"{importlib.metadata.version(package)} (extra {extra})")
        else:
            yield Finding(package, "missing", f"extra {extra} is not installed. {how_to_install(package)}")


def _cache_hooks() -> tuple[str, str]:
    """The router leans on what a denoiser with cache support offers; say so if a new diffusers moved it."""
    from diffusers.models.cache_utils import CacheMixin

    missing = [n for n in ("cache_context", "_reset_stateful_cache", "enable_cache") if not hasattr(CacheMixin, n)]
    if missing:
        return "broken", f"this diffusers has no CacheMixin.{', CacheMixin.'.join(missing)}, so caches would go stale"
    return "ok", "cache contexts and resets reach both denoisers"


def _device() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return "ok", torch.cuda.get_device_name()
    return "missing", "no CUDA device: fit for the reference pair, not for published models"


def _encoder() -> tuple[str, str]:
    from ..files.video import video_encoder

    encoder = video_encoder()
    if encoder is None:
        return "broken", "PyAV has none that writes mp4. Install its wheel: pip install av"
    if encoder != "libx264":
        return "missing", f"PyAV has no libx264: videos are {encoder}, which browsers do not play. Run: pip install av"
    return "ok", encoder


def _plugin_names(manager: FlowblendPluginManager) -> str:
    return ", ".join(name for name, plugin in manager.list_name_plugin() if plugin is not None)


def _pair(pair: PairPreset) -> Finding:
    """Pairs that come with a package have folders, which may not be there; the others are on the hub."""
    what = f"pair {pair.name}"
    if not isinstance(pair.large, Path):
        if all(_is_cached(source) for source in (pair.large, pair.base, pair.small) if source):
            return Finding(what, "ok", "in the hub's cache on this machine")
        is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        remedy = "HF_HUB_OFFLINE forbids to fetch it" if is_offline else "its first run fetches it from the hub"
        return Finding(what, "missing", f"not downloaded; {remedy}")
    for folder, config in ((pair.large, "model_index.json"), (Path(pair.small), "config.json")):
        if not (folder / config).is_file() or not any(folder.rglob("*.safetensors")):
            return Finding(what, "missing", f"--pair {pair.name} does not work: {folder} holds no saved weights")
    return Finding(what, "ok", f"its weights are in {pair.large.parent}")


def _is_cached(source: str | Path) -> bool:
    """Whether the hub's cache has weights of a repository, or the one file that is named; nothing is fetched."""
    from huggingface_hub import constants, try_to_load_from_cache

    if file := HUB_FILE.fullmatch(str(source)):
        return isinstance(try_to_load_from_cache(file[1], file[2]), str)
    folder = Path(constants.HF_HUB_CACHE, f"models--{str(source).replace('/', '--')}", "snapshots")
    return any(folder.rglob("*.safetensors"))


def _blended_generation() -> tuple[str, str]:
    """The core, tried on real pipeline classes with random weights: nothing else tells whether it works here."""
    from ..api import enable
    from ..testing import generate, tiny_wan_denoiser, tiny_wan_pipeline

    pipe = tiny_wan_pipeline()
    plain = generate(pipe, num_inference_steps=5)
    with enable(pipe, tiny_wan_denoiser(), "LSL") as blend:
        blended = generate(pipe, num_inference_steps=5)
    last = blend.trace.last
    counts = {letter: last.num_forwards(letter, "compute") for letter in "LS"} if last is not None else {}
    if counts != {"L": 6, "S": 4}:  # 5 steps of two guidance branches: L 1-2, S 3-4, L 5
        return "broken", f"the schedule was not followed: {counts} forwards, expected 6 of L and 4 of S"
    if blended.equal(plain) or not generate(pipe, num_inference_steps=5).equal(plain):
        return "broken", "the small denoiser changed nothing, or its effect remained after disable()"
    return "ok", "a tiny random pair followed its schedule, and the pipeline is what it was before"
