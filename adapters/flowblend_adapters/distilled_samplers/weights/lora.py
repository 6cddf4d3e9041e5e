"""A LoRA on a denoiser for a while, beside any that the user has on it, and off again without a trace.

It is loaded by diffusers' own converters and layers, so that it computes what ``pipe.load_lora_weights`` does.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from flowblend_plugins import StackError
from flowblend_plugins.extras import how_to_install
from flowblend_plugins.types import Denoiser, Foreign, Keywords, Pipeline

LORA_NAME = "flowblend_distilled"
_PREFIX = "transformer."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# What a PEFT layer keeps for each LoRA beside what it declares itself.
_UNDECLARED = ("lora_variant", "frozen_peft_weight_names")


@dataclass(frozen=True)
class Lora:
    """A LoRA that was read.

    Attributes:
        source: what the user wrote.
        tensors: as diffusers names them, ``transformer.<layer>.lora_A.weight``.
        metadata: PEFT's settings, where the file has them.
    """

    source: str
    tensors: Keywords
    metadata: Keywords | None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of every layer that it changes, by the layer's name."""
        found = {}
        for key, value in self.tensors.items():
            up = self.tensors.get(key.removesuffix(_A) + _B)
            if key.endswith(_A) and up is not None:
                found[key.removeprefix(_PREFIX).removesuffix(_A)] = (value.shape[1], up.shape[0])
        return found


def require_peft() -> None:
    """Raise ``StackError`` where the library that LoRAs need is missing."""
    from diffusers.utils import USE_PEFT_BACKEND

    if not USE_PEFT_BACKEND:
        raise StackError(f"a LoRA needs the package peft, which is not installed. {how_to_install('peft')}")


def read_lora(pipe: Pipeline, source: str, path: Path) -> Lora:
    """Read a LoRA in any format that the loader of this pipeline's class converts.

    Raises:
        StackError: the pipeline loads no LoRAs, or this is none that it can read.
    """
    name = type(pipe).__name__
    if not hasattr(pipe, "lora_state_dict"):
        raise StackError(f"diffusers loads no LoRA into {name}, so {source!r} cannot be used. Give a whole checkpoint.")
    try:
        tensors, metadata = pipe.lora_state_dict(str(path), return_lora_metadata=True, use_safetensors=True)
    except Exception as error:  # converters raise KeyError, ValueError, TypeError and more on what they do not know
        raise StackError(
            f"{source!r} is no LoRA that diffusers can read for {name}: {type(error).__name__}: {error}. Use one that "
            "was made for this family of denoisers."
        ) from error
    return Lora(source, dict(tensors), metadata)


def check_lora_fits(lora: Lora, letter: str, denoisers: Mapping[str, Denoiser]) -> None:
    """Refuse a LoRA that was made for another denoiser, naming both widths.

    Raises:
        StackError: none of its layers are there, some are not, or they are of another width.
    """
    layers, denoiser = lora.shapes, denoisers[letter]
    kind = type(denoiser).__name__
    if not layers:
        raise StackError(f"{lora.source!r} holds no LoRA layers of a transformer. Give a LoRA for {kind}.")
    there = linear_shapes(denoiser)
    unknown = [name for name in layers if name not in there]
    if len(unknown) == len(layers):
        raise StackError(
            f"none of the {len(layers)} layers of {lora.source!r} is one of denoiser {letter} ({kind}); the first is "
            f"{unknown[0]!r}. Give a LoRA made for {kind}."
        )
    wrong = [name for name, shape in layers.items() if name in there and shape != there[name]]
    if not wrong and not unknown:
        return
    others = [other for other, module in denoisers.items() if other != letter and _fits(layers, module)]
    options = {"L": "large=", "S": "small="}
    remedy = (
        f"It fits denoiser {others[0]}: give it as {options.get(others[0], others[0])}."
        if others
        else f"Give a LoRA made for a {kind} of this size."
    )
    if wrong:
        found = (
            f"{lora.source!r} was made for a denoiser {layers[wrong[0]][0]} wide, and denoiser {letter} is "
            f"{there[wrong[0]][0]} wide (at {wrong[0]})"
        )
    else:
        found = (
            f"{len(unknown)} of the {len(layers)} layers of {lora.source!r} are not in denoiser {letter} ({kind}), "
            f"{unknown[0]!r} among them"
        )
    raise StackError(f"{found}. {remedy}")


def linear_shapes(denoiser: Denoiser) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every layer that a LoRA may change, by name, whatever LoRAs are on it already."""
    shapes = {}
    for name, module in denoiser.named_modules():
        if ".lora_" in name or name.endswith("base_layer"):
            continue
        base = getattr(module, "base_layer", module)
        weight = getattr(base, "weight", None)
        if hasattr(base, "in_features"):
            shapes[name] = (base.in_features, base.out_features)
        elif weight is not None and weight.ndim > 1:
            shapes[name] = (weight.shape[1], weight.shape[0])
    return shapes


def _fits(layers: Mapping[str, tuple[int, int]], denoiser: Denoiser) -> bool:
    there = linear_shapes(denoiser)
    return all(there.get(name) == shape for name, shape in layers.items())


@contextlib.contextmanager
def lora_on(lora: Lora, scale: float, letter: str, pipe: Pipeline, denoiser: Denoiser) -> Iterator[None]:
    """The LoRA on a denoiser, active beside those that the user has active, from entering until leaving.

    Raises:
        StackError: a LoRA is fused into the denoiser, or diffusers cannot put this one on.
    """
    before = _LayersBefore(denoiser)
    if before.fused:
        raise StackError(
            f"denoiser {letter} has a LoRA fused into its weights ({before.fused}), and layers that are fused use no "
            "other. Call unfuse_lora() first."
        )
    if LORA_NAME in getattr(denoiser, "peft_config", {}):
        raise StackError(
            f"denoiser {letter} has a LoRA named {LORA_NAME!r} already. Call delete_adapters() on it first."
        )
    tensors = dict(lora.tensors)
    if hasattr(pipe, "_maybe_expand_t2v_lora_for_i2v"):  # as load_lora_weights does
        tensors = pipe._maybe_expand_t2v_lora_for_i2v(transformer=denoiser, state_dict=tensors)
    try:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # the user's own, which is fine
                denoiser.load_lora_adapter(
                    tensors,
                    network_alphas=None,
                    adapter_name=LORA_NAME,
                    metadata=lora.metadata,
                    low_cpu_mem_usage=True,
                )
        except Exception as error:
            raise StackError(
                f"diffusers cannot put {lora.source!r} on denoiser {letter}: {type(error).__name__}: {error}"
            ) from error
        before.activate(scale)
        yield
    finally:
        is_changed = before.restore()
    if is_changed:
        raise StackError(
            f"weights of denoiser {letter} were changed while {lora.source!r} was on it (by merging LoRAs into them, "
            "say), and what they were before is not known any more. Load the denoiser again."
        )


def is_lora_active(denoiser: Denoiser) -> bool:
    """Whether the LoRA that was put on is still there and in use."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in denoiser.modules() if isinstance(m, BaseTunerLayer) and LORA_NAME in m.r]  # type: ignore[operator]
    return bool(layers) and all(
        LORA_NAME in m.active_adapters and not m.disable_adapters and not m.merged for m in layers
    )


class _LayersBefore:
    """State of a denoiser's LoRA layers and weights before ours came, to be restored later.

    What the user does to LoRAs of their own in between stays.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._denoiser = denoiser
        self._layer_class = BaseTunerLayer
        layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
        self.fused = ", ".join(dict.fromkeys(name for layer in layers for name in layer.merged_adapters))
        self._active = {layer: (layer._active_adapter, layer._disable_adapters) for layer in layers}
        self._as_left = dict(self._active)
        self._digests: dict[Foreign, int | None] = {}
        self._requires_grad = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
        self._loaded = vars(denoiser).get("_hf_peft_config_loaded")
        self._had_config = hasattr(denoiser, "peft_config")

    def _ours(self) -> Iterator[tuple[str, Foreign]]:
        for name, module in list(self._denoiser.named_modules()):
            if isinstance(module, self._layer_class) and LORA_NAME in getattr(module, "r", ()):
                yield name, cast(Foreign, module)

    def activate(self, scale: float) -> None:
        """Use ours beside those that were active. diffusers leaves the one that was loaded last active alone."""
        for layer, (active, is_disabled) in self._active.items():
            names = [active] if isinstance(active, str) else list(active)
            added = [LORA_NAME] if LORA_NAME in getattr(layer, "r", ()) else []
            layer._disable_adapters = is_disabled and not added
            layer.set_adapter(([] if is_disabled and added else names) + added)
        self._as_left = {layer: (layer._active_adapter, layer._disable_adapters) for layer in self._active}
        for _, layer in self._ours():
            self._digests[layer] = _digest(layer)
            if scale != 1.0:
                layer.set_scale(LORA_NAME, scale)
        for parameter in self._denoiser.parameters():
            parameter.requires_grad_(self._requires_grad.get(parameter, False))

    def restore(self) -> bool:
        """Take ours off; says whether somebody has changed the weights beneath it meanwhile."""
        is_changed = any(layer.merged or _digest(layer) != digest for layer, digest in self._digests.items())
        for name, layer in self._ours():
            self._take_off(name, layer)
        for layer in [module for module in self._denoiser.modules() if isinstance(module, self._layer_class)]:
            now = layer._active_adapter
            if (now, layer._disable_adapters) == self._as_left.get(layer):
                layer._active_adapter, layer._disable_adapters = self._active[layer]
            elif LORA_NAME in now:
                mine = [name for name in ([now] if isinstance(now, str) else now) if name != LORA_NAME]
                layer._active_adapter = mine
        config = vars(self._denoiser).get("peft_config")
        if config is not None:
            config.pop(LORA_NAME, None)
            if not config:
                del self._denoiser.peft_config
                if self._had_config:  # the user has deleted their own meanwhile, which leaves this behind
                    self._denoiser._hf_peft_config_loaded = None
                elif self._loaded is None:
                    vars(self._denoiser).pop("_hf_peft_config_loaded", None)
                else:
                    self._denoiser._hf_peft_config_loaded = self._loaded
        for parameter, requires_grad in self._requires_grad.items():
            parameter.requires_grad_(requires_grad)
        return is_changed

    def _take_off(self, name: str, layer: Foreign) -> None:
        for attribute in (*layer.adapter_layer_names, *layer.other_param_names, *_UNDECLARED):
            kept = getattr(layer, attribute, None)
            if kept is not None and LORA_NAME in kept:
                del kept[LORA_NAME]
        if not layer.r and layer not in self._active:
            parent, _, child = name.rpartition(".")
            self._denoiser.get_submodule(parent)._modules[child] = layer.base_layer


def _digest(layer: Foreign) -> int | None:
    """The sum of the bits, as integers, of the weight beneath a LoRA layer; ``None`` of one that is no plain tensor."""
    import torch

    weight = layer.get_base_layer().weight
    if type(weight) is not torch.nn.Parameter or not weight.is_contiguous():
        return None
    as_integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return int(weight.detach().view(as_integers).sum(dtype=torch.int64))
