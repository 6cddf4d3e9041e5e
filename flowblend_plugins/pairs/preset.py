"""Data on pairs of denoisers that share one latent space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..schedule import DEFAULT_EARLY, DEFAULT_LATE
from ..types import JsonView, Keywords, KeywordsView, Pipeline


@dataclass(frozen=True, kw_only=True)
class PublishedDenoiser:
    """Public facts about a denoiser, or another component, that is not downloaded.

    Attributes:
        class_name: its class in diffusers (of a text encoder, in transformers).
        config: its public config; what is left out is the class's default.
        num_parameters: of that config, counted.
        source: where the config was read.
    """

    class_name: str
    config: JsonView
    num_parameters: int
    source: str


@dataclass(frozen=True, kw_only=True)
class PairPreset:
    """A large pipeline, its small denoiser, and how they are meant to be sampled.

    Attributes:
        name: what ``--pair`` takes.
        large: hub id or folder of the large pipeline, or a single file with its denoiser.
        base: where ``large`` is a single file: the pipeline that lends all else (text encoder, VAE, scheduler).
        small: hub id or folder of the small pipeline, or of its denoiser alone, or a single file.
        early, late: stage boundaries as fractions of the steps.
        call_defaults: keyword arguments of the pipeline call (size, frames, steps, guidance scale).
        schedule: the schedule it is meant for.
        experts: further denoisers by letter: the name of the large pipeline's own component each. A pipeline of two
            experts (Wan 2.2) has its first one as ``L``.
        source: where the sizes and boundaries come from.
        published: its denoisers by letter, as their public configs say; empty where nothing was published.
        around: its pipeline's other large components by name (``text_encoder``, ``vae``), as their public configs say.
        verified: of a published pair, what shows that its denoisers share one latent space.
        caveats: what a user should know before a run.
        example_prompts: prompts that the pair is known to understand.
        vocabulary: all words that its text encoder was trained on; empty where that is a natural language.
        distilled: few-step weights of its denoisers by ``"<large or small>-<steps>"``: a hub id, folder or file each,
            or ``"as_loaded"`` for a denoiser that is distilled itself.
        similarity: makes a judge of how alike two of its videos are, for ``flowblend calibrate boundaries``: a
            :class:`flowblend_plugins.calibration.similarity.Similarity`. ``None`` where it has none of its own.
    """

    name: str
    large: str | Path
    small: str | Path
    source: str
    base: str | Path | None = None
    schedule: str = "LSL"
    experts: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, PublishedDenoiser] = field(default_factory=dict)
    around: Mapping[str, PublishedDenoiser] = field(default_factory=dict)
    verified: str = ""
    caveats: tuple[str, ...] = ()
    early: float = DEFAULT_EARLY
    late: float = DEFAULT_LATE
    call_defaults: KeywordsView = field(default_factory=dict)
    example_prompts: tuple[str, ...] = ()
    vocabulary: frozenset[str] = frozenset()
    distilled: Mapping[str, str | Path] = field(default_factory=dict)
    similarity: Callable[[], Any] | None = None

    def further_denoisers(self, pipe: Pipeline) -> Keywords:
        """Experts of the loaded pipeline by letter, as ``enable(denoisers=...)`` takes them."""
        return {letter: getattr(pipe, component) for letter, component in self.experts.items()}


def pair_of(pipe: Pipeline, small: object, presets: Iterable[PairPreset]) -> PairPreset | None:
    """The registered pair that a loaded pipeline and small denoiser are, by where they were loaded from.

    Args:
        pipe: the diffusers pipeline.
        small: its loaded small denoiser; ``None`` where it has none.
        presets: of all registered pairs.
    """
    denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    file_source = getattr(denoiser, "config", {}).get("_name_or_path")
    small_source = getattr(small, "config", {}).get("_name_or_path")
    for preset in presets:
        folders = (Path(preset.small), Path(preset.small, "transformer"), Path(preset.small, "unet"))
        is_small = small is None or (small_source is not None and Path(small_source) in folders)
        large_source = getattr(pipe, "name_or_path", None) if preset.base is None else file_source
        if is_small and large_source is not None and Path(large_source) == Path(preset.large):
            return preset
    return None
