"""The facts that make two denoisers blendable, as a table, and a pure comparison of two descriptions.

Only what is *fed* to a denoiser, or decides what its output means, is compared: both denoisers receive the tensors that
the large pipeline prepared for its own. Widths inside a denoiser, its layers and its heads are its own business, and
some of them hide under names that mean an input elsewhere (`cross_attention_dim` of LTX, `added_kv_proj_dim` of Wan).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..types import KeywordsView

Config = KeywordsView


@dataclass(frozen=True)
class Fact:
    """One thing that both sides must have in common.

    Attributes:
        meaning: what it is, in words and with the config keys it is read from.
        read: takes it from a component's config; ``None`` is "has no such input".
        remedy: what to do where it differs.
        needs_both: a missing value means "not known" instead, and is then not held against the pair.
    """

    meaning: str
    read: Callable[[Config], object]
    remedy: str
    needs_both: bool = False


@dataclass(frozen=True)
class Difference:
    """One fact on which the two sides differ, with both values as a reader should see them."""

    meaning: str
    large: str
    small: str
    remedy: str


def first(*keys: str) -> Callable[[Config], object]:
    """Reads the first of the keys that is set: classes name the same input differently."""
    return lambda config: next((config[key] for key in keys if config.get(key) is not None), None)


def presence(*keys: str) -> Callable[[Config], bool]:
    """Reads whether any of the keys is set: for inputs whose configured width is that of the denoiser itself."""
    return lambda config: any(config.get(key) not in (None, False) for key in keys)


def text_width(config: Config) -> object:
    """Width of the text embeddings as they reach the denoiser, before any projection of its own."""
    if config.get("use_crossattn_projection"):  # Cosmos: text_embed_dim is then what the projection makes of it
        return config.get("crossattn_proj_in_channels")
    keys = ["text_dim", "caption_channels", "text_embed_dim", "in_text_dim", "cap_feat_dim", "joint_attention_dim"]
    if config.get("use_prompt_embeddings") is False:  # LTX2: the text arrives projected already
        keys.remove("caption_channels")
    # With a projection in front, cross_attention_dim is an inner width (LTX, Sana, PixArt; UNets with encoder_hid_dim).
    return first(*keys, "encoder_hid_dim", "cross_attention_dim")(config)


def patch_size(config: Config) -> object:
    """Patch as the pipeline sees it, ``(frames, height, width)`` where time is patched too."""
    spatial, temporal = config.get("patch_size"), config.get("patch_size_t")
    return spatial if temporal is None else (temporal, spatial, spatial)


def rotary_width(config: Config) -> object:
    """Width of rotary embeddings that the pipeline makes and hands over, at every head's size."""
    return config.get("attention_head_dim") if config.get("takes_rotary_embedding") else None


def prediction(config: Config) -> object:
    """Kind of the denoiser's output: ``flow`` (velocity of flow matching) or the scheduler's ``prediction_type``."""
    name = config.get("class", "")
    if "Flow" in name or name.endswith("RFScheduler") or config.get("prediction_type") == "flow_prediction":
        return "flow"
    return config.get("prediction_type")


def diffusion_noise(key: str) -> Callable[[Config], object]:
    """Reads a key of the beta schedule, which says nothing under flow matching (there sigma is the timestep)."""
    return lambda config: None if prediction(config) == "flow" else config.get(key)


_SAME_FAMILY = "use a small denoiser of the same family and task"
_SAME_TEXT = "use a small denoiser trained with the same text encoder"
_SAME_LATENTS = "use a small denoiser trained in the large one's latent space"
_SAME_TRAINING = "use a small denoiser trained with the same prediction target and noise schedule"

DENOISER_FACTS = (
    Fact("kind of denoiser", first("kind"), _SAME_FAMILY, needs_both=True),
    Fact("latent channels in (in_channels)", first("in_channels", "in_visual_dim", "in_dim"), _SAME_LATENTS),
    Fact(
        "latent channels out (out_channels)",
        first("out_channels", "out_visual_dim", "out_dim", "in_channels", "in_visual_dim", "in_dim"),
        _SAME_LATENTS,
    ),
    Fact("patch size (patch_size)", patch_size, _SAME_FAMILY),
    Fact("text width (text_dim, caption_channels, cross_attention_dim ...)", text_width, _SAME_TEXT),
    Fact("second text width", first("text_embed_2_dim", "text_embed_dim_t5", "in_text_dim2"), _SAME_TEXT),
    Fact("pooled text width (pooled_projection_dim)", first("pooled_projection_dim"), _SAME_TEXT),
    Fact("text length (max_text_seq_length)", first("max_text_seq_length"), _SAME_TEXT, needs_both=True),
    Fact("image embedding width (image_dim)", first("image_dim", "image_embed_dim", "image_proj_dim"), _SAME_FAMILY),
    Fact("image attention (added_kv_proj_dim)", presence("added_kv_proj_dim"), _SAME_FAMILY),
    Fact("image conditioning (image_condition_type)", first("image_condition_type"), _SAME_FAMILY),
    Fact("control channels (vace_in_channels)", first("vace_in_channels"), _SAME_FAMILY),
    Fact("audio latent channels (audio_in_channels)", first("audio_in_channels"), _SAME_FAMILY),
    Fact(
        "timestep scaling (timestep_scale_multiplier)",
        first("timestep_scale_multiplier", "timestep_scale", "t_scale"),
        _SAME_FAMILY,
    ),
    Fact(
        "guidance embedding (guidance_embeds)",
        presence("guidance_embeds"),
        "use two denoisers that are both distilled for guidance, or neither",
    ),
    Fact(
        "guidance embedding width (time_cond_proj_dim)",
        first("time_cond_proj_dim"),
        "use two denoisers that are both distilled for guidance, or neither",
    ),
    Fact("second timestep (use_meanflow)", presence("use_meanflow"), _SAME_FAMILY),
    Fact("offset input (ofs_embed_dim)", presence("ofs_embed_dim"), _SAME_FAMILY),
    Fact(
        "rotary positions (use_rotary_positional_embeddings)",
        presence("use_rotary_positional_embeddings"),
        _SAME_FAMILY,
    ),
    Fact("rotary width (attention_head_dim)", rotary_width, _SAME_FAMILY),
    Fact("position scale (vae_scale_factors)", first("vae_scale_factors"), _SAME_FAMILY, needs_both=True),
    Fact("added conditioning (addition_embed_type)", first("addition_embed_type"), _SAME_FAMILY),
    Fact("size conditioning (addition_time_embed_dim)", first("addition_time_embed_dim"), _SAME_FAMILY),
    Fact(
        "added conditioning width (projection_class_embeddings_input_dim)",
        first("projection_class_embeddings_input_dim"),
        _SAME_FAMILY,
    ),
    Fact("class conditioning (class_embed_type)", first("class_embed_type", "num_class_embeds"), _SAME_FAMILY),
)

PIPELINE_FACTS = (Fact("timestep for every token (expand_timesteps)", presence("expand_timesteps"), _SAME_FAMILY),)

VAE_FACTS = (
    Fact(
        "VAE class",
        first("class"),
        f"{_SAME_LATENTS} (if you only exchanged the VAE, pass the small denoiser itself, not its pipeline)",
        needs_both=True,
    ),
    Fact("VAE latent channels (z_dim, latent_channels)", first("z_dim", "latent_channels"), _SAME_LATENTS, True),
    Fact("VAE scaling_factor", first("scaling_factor"), _SAME_LATENTS, needs_both=True),
    Fact("VAE shift_factor", first("shift_factor"), _SAME_LATENTS, needs_both=True),
    Fact("VAE latents_mean", first("latents_mean"), _SAME_LATENTS, needs_both=True),
    Fact("VAE latents_std", first("latents_std"), _SAME_LATENTS, needs_both=True),
)

TEXT_ENCODER_FACTS = (
    Fact("type (model_type)", first("model_type"), _SAME_TEXT, needs_both=True),
    Fact("width (d_model, hidden_size)", first("d_model", "hidden_size"), _SAME_TEXT, needs_both=True),
    Fact("vocabulary (vocab_size)", first("vocab_size"), _SAME_TEXT, needs_both=True),
)

SCHEDULER_FACTS = (
    Fact("prediction type (prediction_type)", prediction, _SAME_TRAINING, needs_both=True),
    Fact("training timesteps (num_train_timesteps)", first("num_train_timesteps"), _SAME_TRAINING, needs_both=True),
    *(
        Fact(f"noise schedule ({key})", diffusion_noise(key), _SAME_TRAINING, needs_both=True)
        for key in ("beta_schedule", "beta_start", "beta_end", "rescale_betas_zero_snr", "snr_shift_scale")
    ),
)

FACTS: Mapping[str, Sequence[Fact]] = {
    "denoiser": DENOISER_FACTS,
    "pipeline": PIPELINE_FACTS,
    "vae": VAE_FACTS,
    "scheduler": SCHEDULER_FACTS,
    **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"), TEXT_ENCODER_FACTS),
}


def differences(large: Mapping[str, Config], small: Mapping[str, Config]) -> Iterator[Difference]:
    """Every fact on which two descriptions (component name to config) differ; components of one side only are skipped.

    A pair given as a lone denoiser is thus judged by its denoisers alone.
    """
    for component, facts in FACTS.items():
        if component not in large or component not in small:
            continue
        for fact in facts:
            wanted, found = fact.read(large[component]), fact.read(small[component])
            if fact.needs_both and (wanted is None or found is None):
                continue
            if not _is_same(wanted, found):
                prefix = f"{component} " if component.startswith("text_encoder") else ""
                yield Difference(prefix + fact.meaning, *_shown(wanted, found), fact.remedy)


def _is_same(left: Any, right: Any) -> bool:
    if isinstance(left, float) or isinstance(right, float):
        # Statistics stored in half precision are the same statistics: bfloat16 rounds by up to 2**-8 of the value.
        return left is not None and right is not None and math.isclose(left, right, rel_tol=2**-7)
    if _is_list(left) and _is_list(right):
        return len(left) == len(right) and all(map(_is_same, left, right))
    return left == right


def _shown(wanted: object, found: object) -> tuple[str, str]:
    if _is_list(wanted) and _is_list(found) and len(wanted) == len(found) > 4:
        channel = next(i for i, pair in enumerate(zip(wanted, found, strict=True)) if not _is_same(*pair))
        return f"{_short(wanted[channel])} in channel {channel}", f"{_short(found[channel])} in channel {channel}"
    return _short(wanted), _short(found)


def _short(value: object) -> str:
    if _is_list(value):
        return f"{len(value)} values" if len(value) > 4 else "x".join(_short(item) for item in value)
    if value is None or isinstance(value, bool):
        return "none" if value is None else ("yes" if value else "no")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, (list, tuple))
