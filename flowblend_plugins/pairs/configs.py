"""Describing one side of a pair by its configs: from a loaded pipeline, a loaded denoiser, or a folder's JSON files.

A description maps component names to plain dictionaries, with the defaults of the component's class filled in, so that
a file written by an older diffusers compares equal to the same component loaded today. No weights are read but the two
small vectors of latent statistics that LTX keeps beside them.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from pathlib import Path

from torch import nn

from ..errors import PairError
from ..types import JsonObject, Keywords, Pipeline
from .facts import Config

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_LATENT_STATISTICS = ("latents_mean", "latents_std")


def configs_of_denoiser(denoiser: nn.Module) -> dict[str, Config]:
    """Description of a loaded denoiser alone."""
    return {"denoiser": denoiser_config(type(denoiser), getattr(denoiser, "config", {}))}


def configs_of_pipeline(pipe: Pipeline, slot: str) -> dict[str, Config]:
    """Description of a loaded diffusers pipeline; components that are ``None`` are left out."""
    configs = configs_of_denoiser(getattr(pipe, slot)) | {"pipeline": dict(pipe.config)}
    vae, scheduler = getattr(pipe, "vae", None), getattr(pipe, "scheduler", None)
    if vae is not None:
        buffers = dict(vae.named_buffers(recurse=False)) if isinstance(vae, nn.Module) else {}
        statistics = {
            name: buffers[name].float().tolist()
            for name in _LATENT_STATISTICS
            if name in buffers and not buffers[name].is_meta
        }
        configs["vae"] = {**_with_defaults(type(vae), getattr(vae, "config", {})), **statistics}
    if scheduler is not None:
        configs["scheduler"] = _with_defaults(type(scheduler), scheduler.config)
    for name in _TEXT_ENCODERS:
        encoder = getattr(pipe, name, None)
        if hasattr(getattr(encoder, "config", None), "to_dict"):
            configs[name] = _flat(encoder.config.to_dict())  # type: ignore[union-attr]
    return configs


def configs_of_folder(folder: Path, denoiser_folder: Path, denoiser_class: type) -> dict[str, Config]:
    """Description of a pipeline's (or a lone denoiser's) folder; components that it does not hold are left out."""
    configs: dict[str, Config] = {
        "denoiser": denoiser_config(denoiser_class, read_json(denoiser_folder / "config.json"))
    }
    if denoiser_folder == folder:
        return configs
    configs["pipeline"] = read_json(folder / "model_index.json")
    if (folder / "vae" / "config.json").is_file():
        vae = _with_defaults(None, read_json(folder / "vae" / "config.json"))
        configs["vae"] = {**vae, **_stored_statistics(folder / "vae", vae)}
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        configs["scheduler"] = _with_defaults(None, read_json(folder / "scheduler" / "scheduler_config.json"))
    for name in _TEXT_ENCODERS:
        if (folder / name / "config.json").is_file():
            configs[name] = _text_encoder_config(read_json(folder / name / "config.json"))
    return configs


def denoiser_config(denoiser_class: type, config: Config) -> Config:
    """A denoiser's config with what its class adds: its kind, and whether it is handed rotary embeddings."""
    return {
        **_with_defaults(denoiser_class, config),
        "kind": kind_of(denoiser_class),
        "takes_rotary_embedding": "image_rotary_emb" in forward_parameters(denoiser_class),
    }


def kind_of(denoiser_class: type) -> str | None:
    """``"transformer"`` or ``"unet"`` for denoisers of diffusers and their subclasses, ``None`` for anything else."""
    for base in denoiser_class.__mro__:
        for kind in ("transformer", "unet"):
            if base.__module__.startswith(f"diffusers.models.{kind}s."):
                return kind
    return None


def forward_parameters(denoiser_class: type) -> dict[str, inspect.Parameter]:
    """Parameters of a denoiser class's ``forward``, without ``self``."""
    return dict(list(inspect.signature(denoiser_class.forward).parameters.items())[1:])  # type: ignore[attr-defined]


def diffusers_class(name: object) -> type | None:
    """The class that diffusers exports under this name; code named by a config is never loaded from elsewhere."""
    import diffusers

    found = getattr(diffusers, name, None) if isinstance(name, str) and name in dir(diffusers) else None
    return found if inspect.isclass(found) else None


def read_json(file: Path) -> JsonObject:
    """The JSON object in a file.

    Raises:
        PairError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PairError(
            f"{file} cannot be read as JSON ({error}). Save the model again with save_pretrained()."
        ) from error
    if not isinstance(content, dict):
        raise PairError(f"{file} holds no JSON object. Save the model again with save_pretrained().")
    return content


def _with_defaults(component_class: type | None, config: Config) -> Keywords:
    component_class = component_class or diffusers_class(config.get("_class_name"))
    name = component_class.__name__ if component_class else config.get("_class_name")
    parameters = inspect.signature(component_class.__init__).parameters if component_class else {}
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return {**defaults, **config, "class": name}


def _text_encoder_config(config: Config) -> Config:
    """A transformers config file holds only what differs from its class's defaults; fill those in."""
    from transformers import AutoConfig

    rest = {key: value for key, value in config.items() if key != "model_type"}
    # Suppressed: a model type or a value that this transformers does not know.
    with contextlib.suppress(ValueError, TypeError, KeyError):
        config = AutoConfig.for_model(config.get("model_type", ""), **rest).to_dict()
    return _flat(config)


def _flat(config: Config) -> Config:
    """Multimodal encoders keep their language model's sizes one level down."""
    return {**(config.get("text_config") or {}), **config}


def _stored_statistics(folder: Path, config: Config) -> dict[str, list[float]]:
    from safetensors import SafetensorError, safe_open

    statistics: dict[str, list[float]] = {}
    wanted = [name for name in _LATENT_STATISTICS if config.get(name) is None]
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as weights:
                stored = [name for name in wanted if name in weights.keys()]  # noqa: SIM118 - not a mapping
                statistics |= {name: weights.get_tensor(name).float().tolist() for name in stored}
        except (SafetensorError, OSError) as error:
            raise PairError(f"{file} cannot be read ({error}). Download or save the pipeline again.") from error
    return statistics
