"""Few-step weights on the denoisers of a blend: which, from where, and whether they fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flowblend_plugins import AttachTarget, StackError
from flowblend_plugins.types import Denoiser, Keywords, Pipeline

from .checkpoint import checkpoint_on, read_checkpoint
from .lora import Lora, check_lora_fits, is_lora_active, lora_on, read_lora, require_peft
from .weights_file import WeightsFile, find_weights

if TYPE_CHECKING:
    from torch import nn

AS_LOADED = "as_loaded"
SIDES = {"L": "large", "S": "small"}


@dataclass(frozen=True)
class DistilledWeights:
    """Weights of one denoiser, read and found to fit.

    Attributes:
        letter: of the denoiser.
        file: where they came from.
        lora: what is added to the denoiser; ``None`` for a checkpoint.
        tensors: what takes the place of its weights; ``None`` for a LoRA.
    """

    letter: str
    file: WeightsFile
    lora: Lora | None
    tensors: Keywords | None

    def put_on(self, target: AttachTarget, scale: float) -> contextlib.AbstractContextManager[None]:
        denoiser = target.denoisers[self.letter]
        if self.lora is not None:
            return lora_on(self.lora, scale, self.letter, target.pipeline, denoiser)
        return checkpoint_on(self.tensors or {}, denoiser)

    def check_in_use(self, target: AttachTarget, name: str) -> None:
        """Raise ``StackError`` if the LoRA was taken off or made inactive since it was put on."""
        if self.lora is not None and not is_lora_active(target.denoisers[self.letter]):
            raise StackError(
                f"the LoRA that {name!r} put on denoiser {self.letter} was unloaded or made inactive "
                "since, or merged. Call disable() on the blend, change LoRAs, then enable() again."
            )


def choose_sources(
    name: str, given: Mapping[str, str | None], num_inference_steps: int | None, target: AttachTarget
) -> dict[str, str]:
    """Sources of each denoiser's few-step weights: as given, else as the registered pair names them.

    Args:
        name: of the adapter, for errors.
        given: letter to hub id, folder, file, ``"as_loaded"``, or ``None`` where nothing was said. Letters that are
            not in it need no few-step weights.
        num_inference_steps: which of the pair's weights are meant.
        target: its schedule says which denoisers must have weights.

    Raises:
        StackError: weights are missing for a denoiser that the schedule calls.
    """
    sources = {}
    called = target.schedule.letters
    for letter, source in given.items():
        if source is None and letter not in called:
            continue
        if letter not in target.denoisers:
            if source == AS_LOADED:
                continue
            raise StackError(
                f"{name!r}: {SIDES[letter]}={source!r}, but this blend has no denoiser {letter}. Leave it out, or give "
                "the blend a small denoiser."
            )
        if source is None:
            source = _of_pair(name, letter, num_inference_steps, target)
        if source != AS_LOADED:
            sources[letter] = source
    return sources


def _of_pair(name: str, letter: str, num_inference_steps: int | None, target: AttachTarget) -> str:
    pair, side = target.pair, SIDES[letter]
    known = dict(pair.distilled) if pair is not None else {}
    found = known.get(f"{side}-{num_inference_steps}")
    if found is not None:
        return str(found)
    option = f'Give {side}="..." (a hub id, folder or file), or {side}="{AS_LOADED}" if denoiser {letter} is distilled.'
    of_side = sorted(int(key.partition("-")[2]) for key in known if key.startswith(f"{side}-"))
    if pair is not None and of_side:
        have = " or ".join(map(str, of_side))
        raise StackError(
            f"{name!r}: pair {pair.name!r} has few-step weights of its {side} denoiser for {have} steps, and "
            f"{num_inference_steps} were asked for. Ask for {have}, or say which weights to use. {option}"
        )
    raise StackError(f"{name!r}: the few-step weights of denoiser {letter} are not known. {option}")


def read_weights(name: str, sources: Mapping[str, str], target: AttachTarget) -> dict[str, DistilledWeights]:
    """Read the weights and see that each fits its denoiser; nothing is put on yet.

    Raises:
        StackError: they are not there, cannot be read, or fit another denoiser.
    """
    found = {}
    for letter, source in sources.items():
        _refuse_streamed(name, letter, target.denoisers[letter])
        file = find_weights(source)
        if file.is_lora:
            require_peft()
            lora = read_lora(target.pipeline, source, Path(file.path))
            check_lora_fits(lora, letter, target.denoisers)
            found[letter] = DistilledWeights(letter, file, lora, None)
        else:
            found[letter] = DistilledWeights(letter, file, None, read_checkpoint(file, letter, target.denoisers))
    return found


@contextlib.contextmanager
def weights_on(weights: Mapping[str, DistilledWeights], target: AttachTarget, scale: float) -> Iterator[None]:
    """All of them on their denoisers, from entering until leaving; fusing LoRAs is refused in between."""
    with contextlib.ExitStack() as undo:
        for of_one in weights.values():
            undo.enter_context(of_one.put_on(target, scale))
            undo.enter_context(_fusing_refused(target.denoisers[of_one.letter]))
        if weights:
            undo.enter_context(_fusing_refused(target.pipeline))
        yield


@contextlib.contextmanager
def _fusing_refused(owner: Pipeline | Denoiser) -> Iterator[None]:
    """A pipeline or denoiser whose ``fuse_lora`` and ``unfuse_lora`` raise.

    They would merge what is on for a while into the weights, or the user's own into weights that will be gone.
    """

    def refuse(*args: object, **kwargs: object) -> None:
        raise StackError(
            "fuse_lora() and unfuse_lora() would change weights that 'distilled' will take away or must give back as "
            "they were. Call disable() on the blend, fuse, then enable() again."
        )

    methods = [name for name in ("fuse_lora", "unfuse_lora") if hasattr(owner, name)]
    vars(owner).update(dict.fromkeys(methods, refuse))
    try:
        yield
    finally:
        for name in methods:
            vars(owner).pop(name, None)


def _refuse_streamed(name: str, letter: str, denoiser: Denoiser) -> None:
    """Group and sequential offloading keep copies of each weight, which would not learn of others."""
    from diffusers.hooks.group_offloading import _is_group_offload_enabled

    sequential = any(hasattr(module, "_hf_hook") for key, module in denoiser.named_modules() if key)
    if sequential or _is_group_offload_enabled(cast("nn.Module", denoiser)):
        how = "sequential" if sequential else "group"
        raise StackError(
            f"{name!r}: denoiser {letter} is under {how} offloading, which holds on to the weights it was given. Use "
            f'enable_model_cpu_offload(), or load the LoRA before offloading and say {SIDES[letter]}="{AS_LOADED}".'
        )
