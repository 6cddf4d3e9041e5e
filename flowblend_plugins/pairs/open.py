"""Opening a pair: its pipeline is loaded, and its small denoiser named for ``enable()`` to load."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ..errors import PairError
from ..types import KeywordsView, Pipeline
from .placement import Placement
from .preset import PairPreset
from .sources import PICKLE_SUFFIXES, is_hub_id, refuse_absent


@dataclass(frozen=True)
class OpenedPair:
    """A pair that is loaded, ready for ``enable(pipeline, small, denoisers=further)``.

    Attributes:
        name: the pair's name, or the folders or hub ids it was opened from.
        preset: its registered data; ``None`` where a large pipeline was given instead.
        pipeline: the loaded diffusers pipeline with the large denoiser.
        small: hub id or folder of the small denoiser.
        further: the pipeline's own further experts by letter, as ``enable(denoisers=...)`` takes them.
        call_defaults: keyword arguments for the pipeline call.
        example_prompts: prompts the pair is known to understand.
    """

    name: str
    preset: PairPreset | None
    pipeline: Pipeline
    small: str | Path | None
    call_defaults: KeywordsView
    example_prompts: tuple[str, ...]
    further: KeywordsView = field(default_factory=dict)


def open_pair(
    preset: PairPreset | None,
    large: str | Path | None = None,
    small: str | Path | None = None,
    base: str | Path | None = None,
    placement: Placement | None = None,
) -> OpenedPair:
    """Load the pipeline of a registered pair, or of ``large``; the small denoiser is loaded by ``enable()``.

    Args:
        preset: a registered pair; not used where ``large`` is given.
        large: hub id or folder of the large pipeline, or a single file of its denoiser, in place of the pair's.
        small: hub id, folder or single file of the small denoiser, in place of the pair's.
        base: hub id or folder of the pipeline around a large denoiser in a single file, in place of the pair's.
        placement: device, dtype and offloading; by default CUDA in bfloat16 if there is one, else the CPU in float32.

    Raises:
        PairError: neither is given, or it is no diffusers pipeline with safetensors weights.
    """
    if large is not None:
        preset = None
    elif preset is None:
        raise PairError("no pair was named. Pass a registered pair, or the large pipeline's hub id or folder.")
    source = large if large is not None else preset.large  # type: ignore[union-attr]
    small_source = small if small is not None else preset.small if preset else None
    refuse_absent(source, small_source, base)
    from .single_file import find_single_file  # which loads torch

    file = find_single_file(source)
    if file is None:
        pipeline = load_pipeline(source, placement)
    else:
        pipeline = load_around_file(source, file, base or (preset.base if preset else None), placement)
    return OpenedPair(
        name=preset.name if preset and small is None else f"{source} + {small_source}",
        preset=preset,
        pipeline=pipeline,
        small=small_source,
        call_defaults=dict(preset.call_defaults) if preset else {},
        example_prompts=preset.example_prompts if preset else (),
        further=preset.further_denoisers(pipeline) if preset else {},
    )


def load_around_file(
    source: str | Path, file: Path, base: str | Path | None, placement: Placement | None = None
) -> Pipeline:
    """Load a pipeline whose large denoiser is in a single file, and all else in a folder or on the hub.

    Raises:
        PairError: there is no such pipeline, it is of another family, or its VAE has other latent statistics than the
            file.
    """
    from .configs import configs_of_pipeline
    from .facts import differences
    from .stored_file import stored_file

    stored = stored_file(source, file)
    if base is None:
        raise PairError(
            f"{source} is a single file with the large denoiser alone. Say with --text-encoder (base=) which pipeline "
            'lends its text encoder, tokenizer, VAE and scheduler: a folder or hub id such as "Lightricks/'
            'LTX-Video-0.9.7-dev".'
        )
    denoiser = stored.load((placement or Placement()).torch_dtype())
    pipeline = load_pipeline(base, placement, transformer=denoiser)
    found = [*differences(configs_of_pipeline(pipeline, "transformer"), stored.configs)]
    if found:
        listed = "; ".join(f"{one.meaning}: {one.small}, but {one.large} in the pipeline" for one in found)
        raise PairError(f"{source} does not belong to the pipeline {base}: {listed}. Give one of the same version.")
    return pipeline


def load_pipeline(source: str | Path, placement: Placement | None = None, **components: object) -> Pipeline:
    """A diffusers pipeline from a folder or a hub id.

    Args:
        source: the folder or hub id.
        placement: device, dtype and offloading; by default CUDA in bfloat16 if there is one, else the CPU in float32.
        components: loaded ones in place of its own, by name.

    Raises:
        PairError: it is not there, is no pipeline, or its weights are not safetensors.
    """
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    placement = placement or Placement()
    folder = Path(source).expanduser()
    is_local = not is_hub_id(source)
    if is_local and not (folder / "model_index.json").is_file():
        refuse_absent(source)
        raise PairError(
            f"{source} is no diffusers pipeline: it has no model_index.json. Give the folder that save_pretrained() "
            'wrote, or a hub id such as "Wan-AI/Wan2.1-T2V-14B-Diffusers".'
        )
    if is_local:
        _refuse_pickle(folder)
    if not sys.stderr.isatty():
        hide_progress_bars()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder if is_local else str(source),
            dtype=placement.torch_dtype(),
            use_safetensors=True,
            local_files_only=is_local,
            **components,
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
    return placement.put(cast(Pipeline, pipeline))


def hide_progress_bars() -> None:
    """Keep the libraries' loading bars out of logs and pipes."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _refuse_pickle(folder: Path) -> None:
    """Pickle executes what it holds, so a component that has nothing else is refused before anything is read."""
    for component in sorted(p for p in folder.iterdir() if p.is_dir()):
        pickled = [p.name for p in component.iterdir() if p.suffix in PICKLE_SUFFIXES]
        if pickled and not any(component.glob("*.safetensors")):
            raise PairError(
                f"{component} has its weights in pickle files only ({', '.join(pickled[:3])}), which can run any code "
                "when loaded. Convert them where you trust them: save_pretrained(folder) writes safetensors."
            )
