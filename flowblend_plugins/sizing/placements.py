"""Ways to place a pair's components on one GPU: the peak of each, what it copies, and the code that does it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..schedule import StageSchedule
from .pair import SizedPair

GIB = 2**30
MARGIN, OVERHEAD = 1.05, 0.6 * GIB
"""Asked beyond the peak: fragments of the allocator (5 %), and what CUDA itself and its libraries take."""


class Placement(NamedTuple):
    """One way to place the components.

    Attributes:
        name: in words.
        peak: of allocated bytes on the GPU.
        copied: bytes of weights that go to the GPU in one generation.
        is_exact: the videos are those of the weights as they are.
        code: what to type, given a loaded ``pipe`` and ``small``.
    """

    name: str
    peak: int
    copied: int
    is_exact: bool
    code: str

    def fits(self, gpu_memory: int) -> bool:
        """Whether it fits a GPU of so many bytes, with a margin."""
        return self.peak * MARGIN + OVERHEAD <= gpu_memory


def placements(pair: SizedPair, schedule: StageSchedule, num_steps: int) -> list[Placement]:
    """Every placement that this package knows: exact ones first, then by what they copy.

    Args:
        pair: the sized components.
        schedule: decides how often the denoisers change.
        num_steps: of the generation.
    """
    stages = _stages([letter for letter, _ in schedule.assignments(num_steps)])
    found = [*_whole(pair, stages, is_float8=False), *_whole(pair, stages, is_float8=True)]
    blocks = _by_layers(pair, schedule, num_steps)
    return sorted([*found, blocks], key=lambda one: (not one.is_exact, one.copied))


def cheapest(found: Sequence[Placement], gpu_memory: int) -> Placement | None:
    """The first placement that fits; ``None`` where none does."""
    return next((one for one in found if one.fits(gpu_memory)), None)


def _stages(letters: Sequence[str]) -> list[str]:
    return [letter for index, letter in enumerate(letters) if index == 0 or letters[index - 1] != letter]


_CAST = """for denoiser in (pipe.transformer, small):
    denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
"""


def _whole(pair: SizedPair, stages: Sequence[str], is_float8: bool) -> Iterator[Placement]:
    """Placements that move whole components."""
    used = sorted({*stages, "L"})  # the pipeline holds the large one, whether it is called or not
    weights = {
        letter: pair.denoisers[letter].float8_weights if is_float8 else pair.denoisers[letter].weights
        for letter in used
    }
    running = {letter: weights[letter] + pair.denoisers[letter].peak for letter in used}
    around = {name: one.weights for name, one in pair.around.items()}
    around_peak = max((one.peak for one in pair.around.values()), default=0)
    cast, suffix = (_CAST, ", denoisers stored in float8") if is_float8 else ("", "")
    enabled = "blend = fb.enable(pipe, small)"
    peak_all = max(around_peak, *(pair.denoisers[letter].peak for letter in used))
    yield Placement(
        f"all on the GPU{suffix}",
        sum(around.values()) + sum(weights.values()) + peak_all,
        0,
        not is_float8,
        f'{cast}pipe.to("cuda")\nsmall.to("cuda")\n{enabled}',
    )
    # Between generations, and while the VAE decodes, the large denoiser is there.
    changes = sum(weights[letter] for letter in stages[1:]) + (weights["L"] if stages[-1] != "L" else 0)
    decoding = weights["L"] + around_peak
    pairs = [(a, b) for a, b in itertools.pairwise([*stages, "L"]) if a != b]
    for idle, peak in (
        ("cpu", max(decoding, *running.values())),
        ("prefetch", max(decoding, *running.values(), *(running[a] + weights[b] for a, b in pairs))),
    ):
        yield Placement(
            f'idle="{idle}"{suffix}',
            sum(around.values()) + peak,
            changes,
            not is_float8,
            f'{cast}pipe.to("cuda")\nblend = fb.enable(pipe, small, idle="{idle}")',
        )
    # accelerate takes the component before a denoiser off the GPU, and at the end all: a small denoiser stays when
    # the large one returns. The VAE takes the denoiser before it off, which is the last in the pipeline's order.
    early = around.get("text_encoder", 0) + (pair.around["text_encoder"].peak if "text_encoder" in around else 0)
    returns = len({*stages}) < len(stages)
    both = sum(weights.values()) + max(pair.denoisers[letter].peak for letter in used)
    late = around.get("vae", 0) + around_peak + weights["L"] * (returns or len(used) == 1)
    yield Placement(
        f"whole components in turn{suffix}",
        max(early, both if returns else max(running.values()), late),
        sum(around.values()) + sum(weights.values()),
        not is_float8,
        f"{cast}{enabled}\npipe.enable_model_cpu_offload()",
    )


def _by_layers(pair: SizedPair, schedule: StageSchedule, num_steps: int) -> Placement:
    """Layers copied when they are needed: all weights of a denoiser in each of its calls."""
    assigned = [letter for letter, _ in schedule.assignments(num_steps)]
    copied = pair.calls_per_step * sum(pair.denoisers[letter].weights for letter in assigned)
    copied += sum(one.weights for one in pair.around.values())
    peak = max(one.peak for one in (*pair.denoisers.values(), *pair.around.values()))
    largest = max(one.largest_layer for one in (*pair.denoisers.values(), *pair.around.values()))
    return Placement(
        "layers in turn",
        peak + 2 * largest,
        copied,
        True,
        'blend = fb.enable(pipe, small)\npipe.enable_group_offload(onload_device=torch.device("cuda"), '
        'offload_type="leaf_level", use_stream=True)',
    )
